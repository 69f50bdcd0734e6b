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

SKIPPED = 2  # first steps, which build caches


class Profile(Protocol):
    """What is told of every step."""

    def step(self) -> None:
        """Note that a step has ended."""


class _Nothing:
    def step(self) -> None:
        pass


@contextlib.contextmanager
def profiled(folder: Path, steps: int, rank: int) -> Iterator[Profile]:
    """Write a trace of `steps` steps to `folder`, a file for each rank; none if it is zero."""
    if not steps:
        yield _Nothing()
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
