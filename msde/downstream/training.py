"""The training of one model: epochs, validation, early stopping, and a state to go on from.

Models of a few million weights on some thousand molecules gain nothing from DeepSpeed's engine, so
this is a plain loop. Batch order and dropout are functions of seed, epoch and step, so that a
resumed run is the same to the bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from msde.data.batch import MoleculeBatch
from msde.downstream.evaluation import Outcome, chosen_by, evaluate, evaluation_batches
from msde.downstream.features import remembered
from msde.downstream.heads import TaskModel, parameter_groups
from msde.downstream.labels import Scaling, TaskData
from msde.downstream.metrics import is_better
from msde.downstream.settings import Settings
from msde.downstream.splits import Split
from msde.downstream.tasks import Task
from msde.errors import DataDamaged, MsdeError, NotFinite
from msde.files import write_atomically
from msde.monitor.writer import Monitor
from msde.philox import Key

STATE = "state.pt"


class Trainer:
    """A model and everything that changes while it is trained."""

    def __init__(
        self,
        task: Task,
        data: TaskData,
        split: Split,
        scaling: Scaling,
        model: TaskModel,
        settings: Settings,
        seed: int,
    ) -> None:
        """Keep the parts; molecules are represented once as long as the head alone is trained."""
        self.task, self.data, self.split, self.settings = task, data, split, settings
        self.model, self.seed = model, seed
        self.optimizer = torch.optim.Adam(
            parameter_groups(model, settings), weight_decay=settings.weight_decay
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for p in model.encoders.parameters() if p.requires_grad]
        self.y = torch.from_numpy(scaling.scaled(data.y)).float()  # (num_molecules, targets)
        self.scaling = scaling
        self.device = model.head.weight.device
        self.features: Tensor | None = None
        if settings.training == "frozen":
            self.features = represent_all(model, data)
        self.epoch, self.best, self.best_epoch = 0, math.nan, 0
        self.best_state = _copy(model)

    def run(self, folder: Path) -> None:
        """Train until the last epoch or until validation gets no better; load the best weights."""
        settings = self.settings
        self._resume(folder / STATE)
        monitor, saved = Monitor(folder, self.epoch, settings.epochs), time.monotonic()
        try:
            while self.epoch < settings.epochs and not self._is_over:
                loss = self._train_epoch()
                self.epoch += 1
                row = {"loss/train": loss, "lr": self.optimizer.param_groups[0]["lr"]}
                if self.epoch % settings.validate_every == 0 or self.epoch == settings.epochs:
                    row |= self._validate()
                monitor.scalars(self.epoch, row)
                monitor.advance()
                if time.monotonic() - saved >= settings.save_seconds:
                    monitor.sync()
                    self._save(folder / STATE)
                    saved = time.monotonic()
        finally:
            monitor.close()
        self.model.load_state_dict(self.best_state)

    @property
    def _is_over(self) -> bool:
        """Whether the patience is at its end."""
        waited = self.epoch - max(self.best_epoch, self._head_epochs)
        return 0 < self.settings.patience <= waited

    @property
    def _head_epochs(self) -> int:
        """How many epochs at the start train the head alone and the encoders later."""
        return self.settings.head_epochs if self.settings.training == "staged" else 0

    def predict(self, places: np.ndarray) -> Outcome:
        """Return predictions of molecules in the units of their labels, and the metrics."""
        return evaluate(self.task, self.model, self.data, places, self.scaling, self.features)

    def _validate(self) -> dict[str, float]:
        outcome = self.predict(self.split.valid)
        value = chosen_by(self.task, outcome.metrics, outcome.per_target)
        if math.isnan(value):
            raise NotFinite(
                f"epoch {self.epoch}: the metric of validation is NaN; give a smaller lr"
            )
        if is_better(self.task.metric, value, self.best):
            self.best, self.best_epoch, self.best_state = value, self.epoch, _copy(self.model)
        return {f"{name}/valid": value for name, value in outcome.metrics.items()}

    def _train_epoch(self) -> float:
        """Make one pass over the training part and return the mean loss."""
        factor = 0.5 * (1 + math.cos(math.pi * self.epoch / self.settings.epochs))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self._freeze()
        losses = []
        for step, places in enumerate(self._batches()):
            torch.manual_seed(_seed_of(self.seed, self.epoch, step))
            loss = self._loss(places)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach() * len(places))
        mean = float(torch.stack(losses).sum()) / len(self.split.train)
        if not math.isfinite(mean):
            raise NotFinite(f"epoch {self.epoch + 1}: the loss is not finite; give a smaller lr")
        return mean

    def _freeze(self) -> None:
        """Set which weights and statistics the epoch trains; what is frozen is set to evaluate."""
        is_frozen = self.settings.training == "frozen" or self.epoch < self._head_epochs
        self.model.train(not is_frozen)
        if self.settings.norms == "kept":
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
        if self._head_epochs:
            for parameter in self.trained:
                parameter.requires_grad_(not is_frozen)
            if not is_frozen:
                self.features = None
            elif self.features is None and not self.task.has_forces:
                self.features = represent_all(self.model, self.data)

    def _batches(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.split.train)
        for first in range(0, len(order), self.settings.batch_size):
            yield order[first : first + self.settings.batch_size]

    def _loss(self, places: np.ndarray) -> Tensor:
        y = self.y[torch.from_numpy(places)].to(self.device)  # (rows, targets)
        if self.features is not None:
            return _mean_loss(
                self.settings.loss, self.model.head(self.features[torch.from_numpy(places)]), y
            )
        columns = self.data.columns.take(places)
        batch = MoleculeBatch.from_columns(columns, Key(self.seed, self.epoch)).to(self.device)
        if not self.task.has_forces:
            return _mean_loss(self.settings.loss, self.model(batch), y)
        energy, forces = self.model.energy_and_forces(batch, create_graph=True)
        known = torch.from_numpy(columns.forces.copy()).to(self.device)  # (num_atoms, 3)
        weight = self.settings.energy_weight
        force_loss = _mean_loss(self.settings.loss, forces, known / float(self.scaling.scale[0]))
        return weight * _mean_loss(self.settings.loss, energy, y) + (1 - weight) * force_loss

    def _save(self, path: Path) -> None:
        state = {
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of zip files, pickles and torch
            raise DataDamaged(f"{path} cannot be read: {error}; delete it to start anew") from error
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best, self.best_epoch = (
            state[name] for name in ("epoch", "best", "best_epoch")
        )
        self.best_state = state["best_state"]


def _seed_of(*numbers: int) -> int:
    """Return a seed that depends on all numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _mean_loss(kind: str, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss over known labels, ()."""
    known = ~y.isnan()
    prediction, y = prediction[known], y[known]
    if not len(y):
        return prediction.sum()  # zero, with a gradient
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "bce": nn.functional.binary_cross_entropy_with_logits,
        "mse": nn.functional.mse_loss,
        "l1": nn.functional.l1_loss,
    }
    return functions[kind](prediction, y)


def represent_all(model: TaskModel, data: TaskData) -> Tensor:
    """Return the representation of every molecule by frozen encoders, (num_molecules, width)."""
    weights = [w.detach().cpu().numpy().tobytes() for w in model.encoders.state_dict().values()]
    source = f"{model.config.model} {model.facts.views}".encode() + b"".join(weights)
    h = remembered(source, data, lambda: _represent_all(model, data))
    return h.to(model.head.weight.device)


@torch.no_grad()
def _represent_all(model: TaskModel, data: TaskData) -> Tensor:
    model.eval()
    h = torch.zeros(len(data), model.head.in_features)
    for rows, batch in evaluation_batches(data, np.arange(len(data)), model.head.weight.device):
        h[torch.from_numpy(rows)] = model.represent(batch).float().cpu()
    if not h.isfinite().all():
        raise MsdeError("representations are not finite; the checkpoint is damaged or diverged")
    return h
