"""Whether a step is taken: all ranks decide it together, before the step changes anything.

A loss or gradient that is not finite, or a spike of the loss, must not reach weights, optimizer or
running statistics, on any rank and at any ZeRO stage. The gradients of a step to be skipped are
made non-finite, and a step with such gradients is skipped by Adam (see `optimizer.GradientCheck`).

All this is decided on the device. The host reads what became of a step after the next one, so it
never waits for the step that the device is still busy with.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from msde.config import RunConfig
from msde.data.batch import MoleculeBatch
from msde.errors import NotFinite
from msde.training.batchnorm import RunningStatistics
from msde.training.flat_parameters import model_of
from msde.training.optimizer import GradientCheck
from msde.training.state import MeanLoss, RunState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MEAN_STEPS = 50  # steps after which the mean loss is trusted as a measure of spikes
MEAN_DECAY = 0.99  # of the moving average of the losses


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was skipped, and the molecules that may have caused it."""

    reason: str
    slots: list[dict[str, Any]]  # each with its epoch, number and the ids of the molecules


@dataclass(frozen=True)
class Conclusion:
    """What became of a step."""

    step: int
    stop: bool  # whether some rank was asked to stop
    skipped: SkippedStep | None  # why it was skipped, if it was


class HostCopy:
    """Numbers on their way from the device to the host. Only reading them waits for them."""

    def __init__(self, numbers: Tensor) -> None:
        """Begin to copy."""
        self._numbers, self._arrived = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Return the numbers; work of the device that came after them is not waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


Observed = list[tuple[MoleculeBatch, Tensor]]  # slots, and the losses of their molecules


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
        self._config, self._state = config, state
        self._running_statistics = RunningStatistics(model_of(engine.module), slots_per_step)
        self._gradients = GradientCheck(engine)
        mean = [state.mean_loss.value, state.mean_loss.steps]
        self._mean = torch.tensor(mean, dtype=torch.float64, device=engine.device)
        self._no_limit = torch.full_like(self._mean[0], sys.float_info.max)
        # What the loss of a step that is taken is multiplied by, and of one that is not.
        self._factors = torch.tensor([1.0, math.nan], device=engine.device).unbind()
        self._observed: Observed = []
        self._unread: list[tuple[int, HostCopy, Observed]] = []

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
        totals = torch.cat([total for _, total in self._observed]).double()
        # Filled on the device: a copy of the host's numbers would wait for it.
        facts = (totals.new_full((1,), fact) for fact in (float(stop), float(len(totals))))
        statistics = self._running_statistics.take_sum().to(totals.device)
        agreed = torch.cat([totals.sum().reshape(1), *facts, statistics])
        dist.all_reduce(agreed)
        self._loss, self._stop, self._sum = agreed[0] / agreed[2], agreed[1], agreed[3:]
        self._limit = self._spike_limit()
        # Losses are not negative, so one that is not finite is not below the limit, which is.
        taken, skipped = self._factors
        return loss * torch.where(self._loss <= self._limit, taken, skipped).to(loss.dtype)

    def before_step(self) -> None:
        """Look at the gradients, between the last backward pass and the optimizer's step."""
        self._gradients.before_step()

    def after_step(self, step: int) -> Tensor:
        """Finish a step, of the given number, after the optimizer's step.

        Returns:
            Whether it was skipped, () bool, on the device.
        """
        skipped = self._gradients.skipped(self._mean.device)
        statistics = self._running_statistics
        statistics.commit(self._sum.to(statistics.device), skipped.to(statistics.device))
        value, steps = self._mean
        after = steps + 1
        decay = (steps / after).clamp(max=MEAN_DECAY)
        updated = torch.stack([torch.lerp(self._loss, value, decay), after])
        self._mean = torch.where(skipped, self._mean, updated)
        facts = torch.stack([skipped, self._stop, self._loss, self._limit, *self._mean])
        self._unread.append((step, HostCopy(facts), self._observed))
        self._observed = []
        return skipped

    def conclude(self, newest: bool) -> Iterator[Conclusion]:
        """Yield what became of steps, in their order.

        Args:
            newest: of the newest one, too, for which the device is waited for.
        """
        while len(self._unread) > (not newest):
            step, facts, observed = self._unread.pop(0)
            skipped, stop, loss, limit, mean, steps = facts.read()
            state, why = self._state, None
            state.mean_loss = MeanLoss(mean, int(steps))
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            if skipped:
                self._gradients.count()
                why = self._explain(loss, limit, observed)
            yield Conclusion(step, stop > 0, why)

    def raise_if_stuck(self, skipped: SkippedStep) -> None:
        """End the run after too many skipped steps in a row.

        Raises:
            NotFinite: `skipped` is one too many.
        """
        in_a_row = self._state.skipped_in_a_row
        if in_a_row >= self._config.max_skipped_steps:
            raise NotFinite(
                f"{in_a_row} steps in a row were skipped, the last one because {skipped.reason}; "
                "earlier checkpoints are kept: lower optim.lr, clip gradients (gradient_clipping) "
                "or, if spikes are the reason, raise run.spike_factor, and resume"
            )

    def _spike_limit(self) -> Tensor:
        """Return the mean loss above which a step is a spike, () float64, finite."""
        value, steps = self._mean
        if not self._config.spike_factor:
            return self._no_limit
        limit = (self._config.spike_factor * value).clamp(max=sys.float_info.max)
        return torch.where(steps < MEAN_STEPS, self._no_limit, limit)

    def _explain(self, loss: float, limit: float, observed: Observed) -> SkippedStep:
        if not math.isfinite(loss):
            return SkippedStep("losses are not finite", _gather_slots(observed, _nonfinite))
        if loss > limit:
            factor = self._config.spike_factor
            reason = (
                f"the loss is {loss:.4g}, more than {factor:g} times its mean {limit / factor:.4g}"
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
    observed: Observed,
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
