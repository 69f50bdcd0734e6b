"""Whether a step is taken: decided by all ranks together, before anything is changed by it.

A loss or gradient that is not finite, or a loss that leaps, must reach neither weights, optimizer
nor running statistics, on any rank and at any ZeRO stage. ZeRO 1 to 3 leave out a step whose
gradients are not finite; without ZeRO the optimizer is made to. So a step that is to be skipped is
given gradients that are not finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError, NotFinite
from msde.training.batchnorm import RunningStatistics

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MEAN_DECAY = 0.99  # of the mean loss that a leap is measured against
MEAN_STEPS = 50  # steps before that mean is trusted


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was skipped, and the molecules that had a part in it."""

    reason: str
    slots: list[dict[str, Any]]  # each with its epoch and the ids of the molecules that count


@dataclass
class MeanLoss:
    """The mean loss of the steps that were taken, as checkpoints keep it."""

    value: float = 0.0
    steps: int = 0

    def update(self, loss: float) -> None:
        """Take in the loss of one step."""
        decay = min(MEAN_DECAY, self.steps / (self.steps + 1))
        self.value = decay * self.value + (1 - decay) * loss
        self.steps += 1


class StepGuard:
    """Watches the slots of a step and agrees with the other ranks on what becomes of it."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        slots_per_step: int,
        spike_factor: float,
        max_skipped_steps: int,
        mean_loss: MeanLoss,
        in_a_row: int,
    ) -> None:
        """Watch the engine's model and optimizer.

        Args:
            spike_factor: leave out a step whose loss is more than this times the mean; 0 is off.
            max_skipped_steps: how many steps in a row may be skipped.
            mean_loss: as the last checkpoint had it.
            in_a_row: how many steps were skipped just before it.
        """
        self.engine = engine
        self.statistics = RunningStatistics(engine.module, slots_per_step)
        self.mean_loss = dataclasses.replace(mean_loss)
        self._spike_factor, self._max_skipped_steps = spike_factor, max_skipped_steps
        self.in_a_row = in_a_row
        self._seen: list[tuple[MoleculeBatch, Tensor]] = []
        if not engine.zero_optimization():
            _leave_out_what_is_not_finite(engine.optimizer)

    def see(self, batch: MoleculeBatch, total: Tensor, slot_in_step: int) -> None:
        """Take in a slot after its forward pass; `total` holds its molecules' losses."""
        self.statistics.collect(slot_in_step)
        self._seen.append((batch, total))

    def agree(self, loss: Tensor, stop: bool) -> Tensor:
        """Exchange what the ranks have seen before the last backward pass of a step.

        Args:
            stop: whether this rank has been asked to stop.

        Returns:
            The loss to differentiate: not finite where the step is to be skipped.
        """
        totals = torch.cat([total for _, total in self._seen]).double()
        facts = totals.new_tensor([float(stop), float(len(totals))])
        mine = [totals.sum().reshape(1), facts, self.statistics.take_sum().to(totals.device)]
        agreed = torch.cat(mine)
        dist.all_reduce(agreed)
        self._statistics_sum = agreed[3:]
        self._facts = agreed[:3]
        mean = agreed[0] / agreed[2]
        leave_out = ~mean.isfinite() | (mean > self._limit())
        return loss * torch.where(leave_out, torch.nan, 1.0).to(loss.dtype)

    def _limit(self) -> float:
        if not self._spike_factor or self.mean_loss.steps < MEAN_STEPS:
            return float("inf")
        return self._spike_factor * self.mean_loss.value

    def conclude(self, taken: bool) -> tuple[bool, SkippedStep | None]:
        """Finish a step after the optimizer has had it.

        Returns:
            Whether some rank was asked to stop, and why the step was skipped, if it was.
        """
        total, stop, molecules = self._facts.tolist()  # waits for the device
        seen, self._seen = self._seen, []
        if taken:
            self.in_a_row = 0
            self.statistics.commit(self._statistics_sum.to(self.statistics.device))
            self.mean_loss.update(total / molecules)
            return stop > 0, None
        self.in_a_row += 1
        return stop > 0, self._explain(total / molecules, seen)

    def raise_if_stuck(self, skipped: SkippedStep) -> None:
        """Give up after too many steps that were skipped.

        Raises:
            NotFinite: `skipped` is one too many.
        """
        if self.in_a_row >= self._max_skipped_steps:
            raise NotFinite(
                f"{self.in_a_row} steps in a row were skipped, the last one because "
                f"{skipped.reason}; the checkpoints before are kept: lower optim.lr or clip "
                "gradients (gradient_clipping), and resume"
            )

    def _explain(self, mean: float, seen: list[tuple[MoleculeBatch, Tensor]]) -> SkippedStep:
        if not math.isfinite(mean):
            return SkippedStep("losses are not finite", _named(seen, _not_finite))
        limit = self._limit()
        if mean > limit:
            reason = (
                f"the loss is {mean:.4g}, more than {self._spike_factor:g} times its mean "
                f"{self.mean_loss.value:.4g}"
            )
            return SkippedStep(reason, _named(seen, lambda batch, total: total > limit))
        # They have been summed up over the slots: any of the molecules can be the reason.
        slots = _named(seen, lambda batch, total: torch.ones_like(total, dtype=torch.bool))
        return SkippedStep("gradients are not finite", slots)


def _not_finite(batch: MoleculeBatch, total: Tensor) -> Tensor:
    wrong = ~total.isfinite()
    if wrong.any():
        # BatchNorm spreads what is not finite over the slot: name those it came from.
        broken = torch.zeros_like(wrong)
        broken[batch.batch[~batch.pos.isfinite().all(1)]] = True
        wrong = broken if broken.any() else wrong
    return wrong


def _named(
    seen: list[tuple[MoleculeBatch, Tensor]], which: Callable[[MoleculeBatch, Tensor], Tensor]
) -> list[dict[str, Any]]:
    """Name the slots of all ranks with the ids of those of their molecules that are meant."""
    mine = []
    for batch, total in seen:
        ids = batch.valid(batch.uid)[which(batch, total)].cpu().numpy().view("u8").tolist()
        if ids:
            molecules = [f"{uid:016x}" for uid in ids]
            mine.append({"epoch": batch.key.epoch, "slot": batch.slot, "molecules": molecules})
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return [slot for part in everyone for slot in part]


def _leave_out_what_is_not_finite(optimizer: Any) -> None:
    """Make an optimizer pass over steps whose gradients are not finite, and say so in `overflow`.

    Without ZeRO every rank holds the same gradients, so every rank finds the same.
    """
    step = optimizer.step

    @functools.wraps(step)
    def guarded(*arguments: Any, **options: Any) -> Any:
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm(gradients))
        optimizer.overflow = not bool(norms.isfinite().all())
        return None if optimizer.overflow else step(*arguments, **options)

    optimizer.overflow = False
    optimizer.step = guarded


class OutOfMemory(MsdeError):
    """A slot that does not fit the device's memory."""


@contextlib.contextmanager
def explain_out_of_memory(batch: MoleculeBatch) -> Iterator[None]:
    """Name the slot that does not fit, and the setting to change.

    Raises:
        OutOfMemory: memory ran out inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"out of memory in slot {batch.slot} of epoch {batch.key.epoch}: {batch.num_graphs} "
            f"molecules, {batch.num_atoms} atoms, {batch.pair_index.shape[1]} pairs, the largest "
            f"molecule with {batch.max_num_atoms} atoms; use a smaller data.molecules_per_slot or "
            "data.atoms_per_slot with more slots a step (train_batch_size)"
        ) from error
