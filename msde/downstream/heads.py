"""Encoders with a head: the models that are fine-tuned, and their files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msde.checkpoints.card import write_card
from msde.checkpoints.weights import CONFIG, MODEL, find_weights, read_config, read_state, seal
from msde.config import Config, from_dict, make_config, read_json, to_dict
from msde.data.batch import MoleculeBatch
from msde.downstream.labels import Scaling, TaskData
from msde.downstream.settings import Settings
from msde.downstream.tasks import Task
from msde.errors import DataDamaged, MsdeError, one_line
from msde.files import check_file, write_atomically, write_json
from msde.inference.pretrained import views_of
from msde.model.encoders import ENCODERS_3D, GIN

FORMAT = "msde-finetuned/1"
USE = """```sh
msde predict --model DIR --input molecules.csv --output predicted.csv
```"""
NUMBERED = re.compile(r"(?:layers|norms|interactions|messages|mixings)\.(\d+)\.")


@dataclass(frozen=True)
class ModelFacts:
    """What a fine-tuned model predicts and needs, beside its network; kept with its weights."""

    task: str
    metric: str
    views: tuple[str, ...]
    targets: tuple[str, ...]
    units: tuple[str, ...]
    mean: tuple[float, ...]  # of each target; see labels.Scaling
    scale: tuple[float, ...]
    hydrogens: bool  # whether hydrogens are atoms
    forces_unit: str | None = None  # None: it predicts no forces
    elements: tuple[int, ...] = ()  # atomic numbers in the training part; (): not known
    composition: tuple[int, ...] = ()  # of each atom, sorted, if all training molecules share them

    @classmethod
    def of(cls, task: Task, data: TaskData, scaling: Scaling, settings: Settings) -> ModelFacts:
        """Collect the facts of a fine-tuning on the molecules of `data`."""
        atoms = np.split(data.columns.z, np.cumsum(data.columns.num_atoms)[:-1])
        compositions = {tuple(sorted(z.tolist())) for z in atoms}
        return cls(
            task=task.name,
            metric=task.metric,
            views=tuple(views_of(settings.view)),
            targets=data.targets,
            units=data.units,
            mean=tuple(scaling.mean.tolist()),
            scale=tuple(scaling.scale.tolist()),
            hydrogens=data.hydrogens,
            forces_unit=data.forces_unit,
            elements=tuple(np.unique(data.columns.z).tolist()),
            composition=compositions.pop() if len(compositions) == 1 else (),
        )


class TaskModel(nn.Module):
    """The readouts of one or two encoders, side by side, and one linear layer (Hu et al. 2020).

    Targets are predicted as (y - mean) / scale, classes as logits. The energy of a model with
    forces is the head's output; the forces are its negative gradient.
    """

    def __init__(self, config: Config, facts: ModelFacts) -> None:
        """Build the encoders of `facts.views` and the head."""
        super().__init__()
        model, dim = config.model, config.model.hidden_dim
        self.config, self.facts = config, facts
        self.encoders = nn.ModuleDict()
        if "2d" in facts.views:
            self.encoders["2d"] = GIN(dim, model.gin)
        if "3d" in facts.views:
            network = ENCODERS_3D[model.encoder_3d]
            self.encoders["3d"] = network(dim, getattr(model, model.encoder_3d))
        width = sum(encoder.output_dim for encoder in self.encoders.values())
        self.head = nn.Linear(width, len(facts.targets))

    def represent(self, batch: MoleculeBatch, pos: Tensor | None = None) -> Tensor:
        """Return the readouts side by side, (num_graphs, width).

        Args:
            pos: (num_atoms, 3) A, by default the batch's.
        """
        parts = []
        for view, encoder in self.encoders.items():
            h = encoder(batch) if view == "2d" else encoder(batch, pos)  # (num_atoms, width)
            parts.append(encoder.readout(h, batch))
        return torch.cat(parts, dim=-1)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Return scaled predictions or logits, (num_graphs, targets)."""
        return self.head(self.represent(batch))

    def energy_and_forces(
        self, batch: MoleculeBatch, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return scaled energies, (num_graphs, 1), and scaled forces, (num_atoms, 3).

        Args:
            create_graph: whether the forces are to be differentiated in turn.
        """
        with torch.enable_grad():
            pos = batch.pos.detach().requires_grad_()
            energy = self.head(self.represent(batch, pos))
            (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=create_graph)
        return energy, -gradient


def network_config(checkpoint: Path | None, settings: Settings) -> Config:
    """Return the configuration of the network: the checkpoint's, with the settings' changes."""
    if checkpoint is None:
        config = make_config(settings.preset)
    else:
        config = read_config(find_weights(checkpoint))
    gin = dataclasses.replace(config.model.gin, dropout=settings.dropout)
    if settings.readout != "pretrained":
        gin = dataclasses.replace(gin, readout=settings.readout)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, gin=gin))


def make_model(config: Config, facts: ModelFacts, checkpoint: Path | None, seed: int) -> TaskModel:
    """Build a model; its head depends on the seed alone, random encoders likewise.

    Args:
        checkpoint: of the encoders' weights; None: they are random.

    Raises:
        MsdeError: the checkpoint lacks an encoder, or has it in another shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskModel(config, facts)
        torch.manual_seed(seed)  # so that pretrained and random encoders get the same head
        model.head.reset_parameters()
    if checkpoint is not None:
        folder = find_weights(checkpoint)
        stored = read_state(folder)
        for view, encoder in model.encoders.items():
            prefix = f"encoder_{view}."
            state = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
            if not state:
                raise MsdeError(f"{folder} has no {view.upper()} encoder; choose another view=")
            _fill(encoder, state, folder)
    return model


def _fill(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise MsdeError(f"{folder / MODEL} does not fit its {CONFIG}: {one_line(error)}") from error


def parameter_groups(model: TaskModel, settings: Settings) -> list[dict[str, Any]]:
    """Return groups with learning rates: the head, and the encoders as a whole or by layer."""
    rate = settings.lr * settings.head_lr_scale
    groups = [{"params": list(model.head.parameters()), "lr": rate}]
    if settings.training == "frozen":
        return groups
    if settings.training in ("full", "staged"):
        trained = [p for p in model.encoders.parameters() if p.requires_grad]
        return [*groups, {"params": trained, "lr": settings.lr}]
    for encoder in model.encoders.values():
        depth = depths(encoder)
        last = max(depth.values())
        named = dict(encoder.named_parameters())
        for place in range(last + 1):
            params = [named[name] for name, found in depth.items() if found == place]
            rate = settings.lr * settings.layer_decay ** (last - place)
            groups.append({"params": params, "lr": rate})
    return groups


def depths(encoder: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter: embeddings 0, layers from 1, what follows them last."""
    found = {}
    for name, _ in encoder.named_parameters():
        match = NUMBERED.match(name)
        found[name] = int(match[1]) + 1 if match else (-1 if name.startswith("out.") else 0)
    last = max(found.values())
    return {name: last + 1 if depth < 0 else depth for name, depth in found.items()}


def save_model(model: TaskModel, folder: Path, origin: Sequence[str] = ()) -> None:
    """Write weights, network and facts of a model, with their card and a MANIFEST of their hashes.

    Args:
        origin: what is known of the training, for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "network": to_dict(model.config),
        "facts": dataclasses.asdict(model.facts),
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / MODEL, lambda path: save_file(state, path))
    write_json(folder / CONFIG, values)
    _write_card(model, state, folder, origin)
    seal(folder, [MODEL, CONFIG])


def _write_card(
    model: TaskModel, state: dict[str, Tensor], folder: Path, origin: Sequence[str]
) -> None:
    facts, names = model.facts, {"2d": "GIN", "3d": model.config.model.encoder_3d}
    networks = {f"encoders.{view}": f"{names[view]}, of the {view.upper()} view"
                for view in facts.views}  # fmt: skip
    networks["head"] = "a linear layer"
    pairs = zip(facts.targets, facts.units, strict=True)
    predicted = [f"`{name}`" + f" ({unit})" * bool(unit) for name, unit in pairs]
    forces = f", and forces ({facts.forces_unit})" if facts.forces_unit else ""
    write_card(
        folder, state, networks, origin or ["It is not recorded what this model was trained on."],
        tag="molecular-property-prediction", title=f"Fine-tuned for {facts.task}", use=USE,
        summary=f"Predicts {', '.join(predicted)}{forces} of molecules.",
    )  # fmt: skip


def load_model(folder: Path) -> TaskModel:
    """Rebuild a fine-tuned model, in evaluation mode.

    Raises:
        MsdeError: the folder holds none, or another release's.
        DataDamaged: a file is not as it was written.
    """
    for name in (MODEL, CONFIG):
        if not (folder / name).exists():
            raise MsdeError(f"{folder} holds no fine-tuned model ({name} is missing)")
        check_file(folder / name)
    values = read_json(folder / CONFIG)
    if values.get("format") != FORMAT:
        hint = "; is it a pretrained one? launch/embed.py embeds with it" * ("model" in values)
        raise MsdeError(f"{folder} holds no fine-tuned model of this release ({FORMAT}){hint}")
    facts: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values["facts"].items()
    }
    with torch.random.fork_rng(devices=[]):
        model = TaskModel(from_dict(values["network"]), ModelFacts(**facts))
    try:
        model.load_state_dict(load_file(folder / MODEL))
    except Exception as error:  # of safetensors and torch
        raise DataDamaged(f"{folder / MODEL} cannot be read: {error}") from error
    return model.eval()


def seed_folders(output: Path) -> list[Path]:
    """Return the folders of the seeds of a fine-tuning, in the order of their numbers."""
    found = [(re.fullmatch(r"seed-(\d+)", path.name), path) for path in output.glob("seed-*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def model_folders(output: Path) -> list[Path]:
    """Return the folders of the models of a fine-tuning, one a seed, or the folder itself.

    Raises:
        MsdeError: there is none.
    """
    if (output / MODEL).exists():
        return [output]
    folders = [folder / "model" for folder in seed_folders(output)]
    models = [folder for folder in folders if (folder / MODEL).exists()]
    if not models:
        raise MsdeError(f"{output} holds no fine-tuned model; launch/finetune.py makes one")
    return models
