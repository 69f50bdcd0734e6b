"""Means of the terms over molecules, and throughput and timing since the last logged row."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from msde.monitor.writer import OBJECTIVES


class TermSums:
    """Sums of the model's named terms over molecules, kept on the device until they are read.

    Molecules with a term that is not finite are not counted; `step_guard` reports them.
    """

    NAMES = (*OBJECTIVES, "contrastive_accuracy")

    def __init__(self, device: torch.device) -> None:
        """Start from zero."""
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64, device=device)

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Add the terms of one slot."""
        stacked = torch.stack([terms[name] for name in self.NAMES]).double()
        finite = stacked.isfinite().all(0)  # (num_valid,)
        self._sums[:-1] += torch.where(finite, stacked, 0.0).sum(1)
        self._sums[-1] += finite.sum()

    def read(self) -> tuple[dict[str, float], int]:
        """Return the mean of each term over all ranks' molecules and their number; reset."""
        dist.all_reduce(self._sums)
        *sums, count = self._sums.tolist()
        self._sums.zero_()
        return {n: s / max(count, 1) for n, s in zip(self.NAMES, sums, strict=True)}, int(count)


def named_scalars(terms: dict[str, float], part: str = "") -> dict[str, float]:
    """Name the model's terms as in metrics.jsonl and TensorBoard."""
    scalars = {f"loss/{part}{name}": value for name, value in terms.items()}
    scalars[f"accuracy/{part}contrastive"] = scalars.pop(f"loss/{part}contrastive_accuracy")
    return scalars


class Interval:
    """The steps since the last row of metrics: sums of their terms, and their times."""

    def __init__(self, device: torch.device, step: int) -> None:
        """Begin after a step."""
        self.sums = TermSums(device)
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin anew after a step; the sums were reset when they were read."""
        self._began, self._waited, self._first_step = time.perf_counter(), 0.0, step

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside."""
        since = time.perf_counter()
        yield
        self._began += time.perf_counter() - since

    def scalars(self, step: int) -> dict[str, float]:
        """Return means, rates and times up to a step; every rank must call it."""
        means, molecules = self.sums.read()  # waits for the device and for the other ranks
        seconds = time.perf_counter() - self._began
        return (named_scalars(means) if molecules else {}) | {
            "throughput/molecules_per_s": molecules / seconds,
            "time/data_wait_share": self._waited / seconds,
            "time/step_s": seconds / (step - self._first_step),
        }
