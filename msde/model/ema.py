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
    """average <- decay * average + (1 - decay) * weights, after each optimizer step.

    Under ZeRO-3 each rank averages the part of the weights that it owns; else all of them.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        """Start from the engine's present weights."""
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
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(self._average, self._own_weights(), 1 - self.decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the engine's weights be the average for a while; every rank must call it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # ZeRO-3 keeps small weights whole beside the parts: put them away and fetch them anew.
        kept_whole = getattr(self.engine.optimizer, "persistent_parameters", [])
        if kept_whole:
            kept_whole[0].partition(kept_whole)
        for own, average in zip(self._own_weights(), self._average, strict=True):
            weights = own.clone()
            own.copy_(average)
            average.copy_(weights)
        if kept_whole:
            kept_whole[0].all_gather(kept_whole)
