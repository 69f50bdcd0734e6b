"""The losses on held-out molecules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from msde.config import LossConfig
from msde.data.batch import MoleculeBatch
from msde.philox import Key
from msde.training.metrics import TermSums
from msde.training.plan import RunPlan

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# Every validation draws the same noise and times, whatever the run's seed and step.
VALIDATION_KEY = Key(seed=0, epoch=2**32 - 1)


class Validator:
    """Validates on fixed slots, with fixed noise and times, and with running statistics."""

    def __init__(self, plan: RunPlan, loss: LossConfig, rank: int, world_size: int) -> None:
        """Deal the held-out slots to the ranks; `loss` is the run's."""
        self._loss = loss
        count = max(1, round(len(plan.validation) / plan.molecules_per_slot))
        slots = np.array_split(plan.validation, count)
        # All ranks make the same number of forward passes; ZeRO-3 would hang otherwise.
        numbers = range(rank, -(-count // world_size) * world_size, world_size)
        self._count = count
        self._slots = {n: plan.stream.data.fetch(slots[n % count]) for n in numbers}

    @torch.no_grad()
    def __call__(
        self, engine: DeepSpeedEngine, go_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return named means of the terms, or None if it was stopped; every rank must call it.

        Args:
            go_on: called before every slot, by all ranks together; False stops the validation.
        """
        sums = TermSums(engine.device, self._loss)
        engine.eval()
        try:
            for number, columns in self._slots.items():
                if not go_on():
                    return None
                batch = MoleculeBatch.from_columns(columns, VALIDATION_KEY, slot=number)
                batch = batch.to(engine.device)
                _, terms = engine(batch)
                if number < self._count:
                    sums.add(terms, batch)
        finally:
            engine.train()
        return sums.read("validation/")[0]
