"""Means of the model's terms over molecules, in training and on held-out molecules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from msde.data.batch import MoleculeBatch
from msde.monitor.writer import OBJECTIVES
from msde.philox import Key
from msde.training.plan import RunPlan

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# Validation sees the same noise and times whatever the run's seed and step.
VALIDATION_KEY = Key(seed=0, epoch=2**32 - 1)


class TermSums:
    """Sums of the model's named terms over molecules, kept on the device until they are read.

    Molecules whose loss is not finite are not counted; `guard.StepGuard` tells of them.
    """

    NAMES = (*OBJECTIVES, "contrastive_accuracy")

    def __init__(self, device: torch.device) -> None:
        """Start from zero."""
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64, device=device)

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Take in the terms of one slot."""
        stacked = torch.stack([terms[name] for name in self.NAMES]).double()
        finite = stacked.isfinite().all(0)  # (num_graphs,)
        self._sums[:-1] += torch.where(finite, stacked, 0.0).sum(1)
        self._sums[-1] += finite.sum()

    def read(self) -> tuple[dict[str, float], int]:
        """Return the mean of each term over all ranks' molecules and their number; start anew."""
        dist.all_reduce(self._sums)
        *sums, count = self._sums.tolist()
        self._sums.zero_()
        return {n: s / max(count, 1) for n, s in zip(self.NAMES, sums, strict=True)}, int(count)


def named_scalars(terms: dict[str, float], part: str = "") -> dict[str, float]:
    """Name the model's terms as metrics.jsonl and TensorBoard know them."""
    scalars = {f"loss/{part}{name}": value for name, value in terms.items()}
    scalars[f"accuracy/{part}contrastive"] = scalars.pop(f"loss/{part}contrastive_accuracy")
    return scalars


class Validator:
    """The losses on held-out molecules: fixed slots, noise and times, running statistics."""

    def __init__(self, plan: RunPlan, rank: int, world_size: int) -> None:
        """Deal the held-out slots to the ranks."""
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
        """Return the mean of each term, or None if it was stopped; every rank must call it.

        Args:
            go_on: asked before every slot, by all ranks together.
        """
        sums = TermSums(engine.device)
        engine.eval()
        try:
            for number, columns in self._slots.items():
                if not go_on():
                    return None
                batch = MoleculeBatch.from_columns(columns, VALIDATION_KEY, slot=number)
                _, terms = engine(batch.to(engine.device))
                if number < self._count:
                    sums.add(terms)
        finally:
            engine.train()
        return sums.read()[0]
