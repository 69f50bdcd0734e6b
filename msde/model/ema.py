"""An exponential moving average of the weights, at any ZeRO stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class ExponentialMovingAverage:
    """average <- decay * average + (1 - decay) * weights, after each optimizer step taken.

    Under ZeRO-3 each rank averages its own partition of the weights, else all weights.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        """Start from the engine's current weights."""
        self.engine = engine
        self.decay = decay
        self._average = [own.clone() for own in self._own_weights()]

    def _own_weights(self) -> list[Tensor]:
        return [
            getattr(parameter, "ds_tensor", parameter).data
            for parameter in self.engine.module.parameters()
            if parameter.requires_grad
        ]

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Move the average towards the engine's current weights.

        Args:
            skipped: whether the step was skipped, () bool: then the average stays. The host does
                not wait for it.
        """
        weights = self._own_weights()
        share = (1 - self.decay) * ~skipped.to(weights[0].device)
        torch._foreach_lerp_(self._average, weights, [share] * len(weights))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Exchange weights and average within the block; every rank must enter it.

        After an error in the block they stay exchanged: the run is over, and to exchange them back
        the ranks would wait for each other.
        """
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # ZeRO-3 keeps gathered copies of small weights: release them, and gather them afterwards.
        persistent = getattr(self.engine.optimizer, "persistent_parameters", [])
        if persistent:
            persistent[0].partition(persistent)
        for own, average in zip(self._own_weights(), self._average, strict=True):
            weights = own.clone()
            own.copy_(average)
            average.copy_(weights)
        if persistent:
            persistent[0].all_gather(persistent)
