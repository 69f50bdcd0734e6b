"""A trace of a few steps for TensorBoard's profiler, Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import profiler

log = logging.getLogger("msde")

SKIPPED = 2  # first steps of the process, which fill caches


class Profile(Protocol):
    """A profiler that counts the steps of a run."""

    def step(self) -> None:
        """Mark the end of a step."""


class _NoProfile:
    def step(self) -> None:
        pass


@contextlib.contextmanager
def profiled(folder: Path, steps: int, rank: int) -> Iterator[Profile]:
    """Write a trace of `steps` steps to `folder`, one file for each rank; 0 steps write none."""
    if not steps:
        yield _NoProfile()
        return
    activities = [profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(profiler.ProfilerActivity.CUDA)

    def write(finished: profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank}.json.gz"
        finished.export_chrome_trace(str(path))
        log.info("trace of %d steps: %s", steps, path)

    schedule = profiler.schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1)
    with profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=write, record_shapes=True
    ) as running:
        yield running
