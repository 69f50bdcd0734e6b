"""BatchNorm's running statistics, the same on all ranks and for any number of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """Updates running statistics by a step's slots in their order, as a single process does.

    r <- (1 - m) r + m s for the statistics s of each slot, with momentum m. During the forward pass
    of a slot the layers have momentum one, which leaves the slot's own statistics in their buffers;
    at all other times the buffers hold the running statistics.
    """

    def __init__(self, module: nn.Module, slots_per_step: int) -> None:
        """Control the BatchNorm layers of a module from now on."""
        self._norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
        (self._momentum,) = {float(norm.momentum or 0) for norm in self._norms}  # all the same
        for norm in self._norms:
            norm.momentum = 1.0
        self._buffers: list[Tensor] = [
            norm.get_buffer(name)
            for norm in self._norms
            for name in ("running_mean", "running_var")
        ]
        self._counters = [norm.get_buffer("num_batches_tracked") for norm in self._norms]
        self._slots_per_step = slots_per_step
        self._running = self._flat()
        self._sum: Tensor | None = None
        self._batches = torch.stack(self._counters)  # (layers,)

    @property
    def device(self) -> torch.device:
        """The device of the statistics."""
        return self._running.device

    def _flat(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers])

    @torch.no_grad()
    def collect(self, slot: int) -> None:
        """Add the statistics of a slot, by its number in the step, after its forward pass."""
        share = self._momentum * (1 - self._momentum) ** (self._slots_per_step - 1 - slot)
        part = self._flat().double().mul_(share)
        self._sum = part if self._sum is None else self._sum.add_(part)
        self._restore()

    def _restore(self) -> None:
        # Through `data`: autograd has saved the buffers in the forward pass and would refuse the
        # backward pass, which does not use them, if it knew of the change.
        buffers = [buffer.data for buffer in self._buffers]
        parts = self._running.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, list(parts))
        torch._foreach_copy_(self._counters, list(self._batches.unbind()))

    def take_sum(self) -> Tensor:
        """Return this rank's part of the step's sum, to be summed over ranks; reset it."""
        own, self._sum = self._sum, None
        assert own is not None, "every rank collects the statistics of a slot"
        return own

    @torch.no_grad()
    def commit(self, total: Tensor, skipped: Tensor) -> None:
        """Update the running statistics by a step, unless it was skipped.

        Args:
            total: the sum over ranks of `take_sum`.
            skipped: () bool.
        """
        kept = (1 - self._momentum) ** self._slots_per_step
        updated = torch.add(total, self._running, alpha=kept).to(self._running.dtype)
        self._running = torch.where(skipped, self._running, updated)
        self._batches = torch.where(skipped, self._batches, self._batches + self._slots_per_step)
        self._restore()
