"""Whether a step is taken: all ranks decide it together, before the step changes anything.

A loss or gradient that is not finite, or a spike of the loss, must not reach weights, optimizer or
running statistics, on any rank and at any ZeRO stage. The gradients of a step to be skipped are
made non-finite: the optimizers of ZeRO 1 to 3 skip such a step, and so does `SkippingAdam`, which
takes their place without ZeRO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from msde.config import RunConfig
from msde.data.batch import MoleculeBatch
from msde.errors import NotFinite
from msde.training.batchnorm import RunningStatistics
from msde.training.state import RunState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MEAN_STEPS = 50  # steps after which the mean loss is trusted as a measure of spikes


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was skipped, and the molecules that may have caused it."""

    reason: str
    slots: list[dict[str, Any]]  # each with its epoch, number and the ids of the molecules


class StepGuard:
    """Observes the slots of a step and agrees with the other ranks whether to take it."""

    def __init__(
        self, engine: DeepSpeedEngine, slots_per_step: int, config: RunConfig, state: RunState
    ) -> None:
        """Guard the engine's model and optimizer.

        Args:
            config: its `spike_factor` and `max_skipped_steps`.
            state: of the run; the guard updates its mean loss and its count of skipped steps.
        """
        self._engine, self._config, self._state = engine, config, state
        self._running_statistics = RunningStatistics(engine.module, slots_per_step)
        self._observed: list[tuple[MoleculeBatch, Tensor]] = []

    def observe(self, batch: MoleculeBatch, total: Tensor, slot_in_step: int) -> None:
        """Note a slot after its forward pass; `total` is (num_valid,), its molecules' losses."""
        self._running_statistics.collect(slot_in_step)
        self._observed.append((batch, total.detach()))

    def agree(self, loss: Tensor, stop: bool) -> Tensor:
        """Exchange what the ranks have observed, before the last backward pass of a step.

        Args:
            loss: of the last slot, ().
            stop: whether this rank has been asked to stop.

        Returns:
            The loss to differentiate, not finite if the step is to be skipped.
        """
        self._skipped_before = self._engine.skipped_steps
        totals = torch.cat([total for _, total in self._observed]).double()
        # Filled on the device: a copy of the host's numbers would wait for it.
        facts = (totals.new_full((1,), fact) for fact in (float(stop), float(len(totals))))
        statistics = self._running_statistics.take_sum().to(totals.device)
        agreed = torch.cat([totals.sum().reshape(1), *facts, statistics])
        dist.all_reduce(agreed)
        self._facts, self._statistics_sum = agreed[:3], agreed[3:]
        mean = agreed[0] / agreed[2]
        skip = ~mean.isfinite() | (mean > self._limit())
        return loss * torch.where(skip, torch.nan, 1.0).to(loss.dtype)

    def conclude(self) -> tuple[bool, SkippedStep | None]:
        """Finish a step after the optimizer's step.

        Returns:
            Whether some rank was asked to stop, and why the step was skipped, if it was.
        """
        total, stop, molecules = self._facts.tolist()  # waits for the device
        observed, self._observed = self._observed, []
        if self._engine.skipped_steps == self._skipped_before:
            statistics = self._running_statistics
            statistics.commit(self._statistics_sum.to(statistics.device))
            self._state.mean_loss.update(total / molecules)
            self._state.skipped_in_a_row = 0
            return stop > 0, None
        self._state.skipped_in_a_row += 1
        return stop > 0, self._explain(total / molecules, observed)

    def raise_if_stuck(self, skipped: SkippedStep) -> None:
        """End the run after too many skipped steps in a row.

        Raises:
            NotFinite: `skipped` is one too many.
        """
        in_a_row = self._state.skipped_in_a_row
        if in_a_row >= self._config.max_skipped_steps:
            raise NotFinite(
                f"{in_a_row} steps in a row were skipped, the last one because {skipped.reason}; "
                "earlier checkpoints are kept: lower optim.lr or clip gradients "
                "(gradient_clipping), and resume"
            )

    def _limit(self) -> float:
        """Return the mean loss above which a step is a spike."""
        if not self._config.spike_factor or self._state.mean_loss.steps < MEAN_STEPS:
            return math.inf
        return self._config.spike_factor * self._state.mean_loss.value

    def _explain(self, mean: float, observed: list[tuple[MoleculeBatch, Tensor]]) -> SkippedStep:
        if not math.isfinite(mean):
            return SkippedStep("losses are not finite", _gather_slots(observed, _nonfinite))
        limit = self._limit()
        if mean > limit:
            reason = (
                f"the loss is {mean:.4g}, more than {self._config.spike_factor:g} times its mean "
                f"{self._state.mean_loss.value:.4g}"
            )
            return SkippedStep(reason, _gather_slots(observed, lambda _, total: total > limit))
        # Gradients are sums over the slots: any of the molecules can be the cause.
        slots = _gather_slots(observed, lambda _, total: torch.ones_like(total, dtype=torch.bool))
        return SkippedStep("gradients are not finite", slots)


def _nonfinite(batch: MoleculeBatch, total: Tensor) -> Tensor:
    """Return which molecules of a slot have caused losses that are not finite, (num_valid,)."""
    nonfinite = ~total.isfinite()
    if nonfinite.any():
        # BatchNorm spreads them over the whole slot: prefer molecules with broken positions.
        broken = torch.zeros_like(nonfinite)
        broken[batch.batch[~batch.pos.isfinite().all(1)]] = True
        nonfinite = broken if broken.any() else nonfinite
    return nonfinite


def _gather_slots(
    observed: list[tuple[MoleculeBatch, Tensor]],
    which: Callable[[MoleculeBatch, Tensor], Tensor],
) -> list[dict[str, Any]]:
    """Return the slots of all ranks with the ids of those molecules that `which` selects."""
    own = []
    for batch, total in observed:
        ids = batch.valid(batch.uid)[which(batch, total)].cpu().numpy().view("u8").tolist()
        if ids:
            molecules = [f"{uid:016x}" for uid in ids]
            own.append({"epoch": batch.key.epoch, "slot": batch.slot, "molecules": molecules})
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return [slot for part in gathered for slot in part]
