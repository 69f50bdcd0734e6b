"""Means of the terms over molecules, and throughput and timing since the last logged row."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from msde.config import LossConfig
from msde.data.batch import MoleculeBatch
from msde.model import names_of_terms
from msde.model.noise import TIMES
from msde.philox import Stream

QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")  # of the diffusion time
PHASES = ("data_wait", "forward", "backward", "optimizer")  # of a step, in their order


class TermSums:
    """Sums of the model's named terms over molecules, kept on the device until they are read.

    The two denoising losses are also summed by the quarter of the diffusion time that a molecule
    has drawn. Molecules with a term that is not finite are not counted; `step_guard` reports them.
    """

    STREAMS = {"2d_to_3d": Stream.TIME_2D_TO_3D, "3d_to_2d": Stream.TIME_3D_TO_2D}

    def __init__(self, device: torch.device, loss: LossConfig) -> None:
        """Start from zero; `loss` says how times are drawn and which terms there are."""
        self._loss, self._names = loss, names_of_terms(loss)
        self._timed = [n for n in self.STREAMS if getattr(loss, f"coefficient_{n}")]
        self._quarters = torch.arange(len(QUARTERS), device=device).unsqueeze(1)  # (4, 1)
        by_time = 2 * len(self._timed) * len(QUARTERS)
        size = len(self._names) + 2 + by_time
        self._sums = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, terms: dict[str, Tensor], batch: MoleculeBatch) -> None:
        """Add the terms of one slot."""
        stacked = torch.stack([terms[name] for name in self._names]).double()
        finite = stacked.isfinite().all(0)  # (num_valid,)
        stacked = torch.where(finite, stacked, 0.0)
        atoms = torch.where(finite, batch.valid(batch.atoms_per_graph), 0)  # (num_valid,)
        parts = [stacked.sum(1), finite.sum().reshape(1), atoms.sum().reshape(1)]
        for name in self._timed:
            quarter = (self._times(batch, name) * len(QUARTERS)).long()  # (num_valid,)
            member = ((quarter == self._quarters) & finite).double()  # (4, num_valid)
            parts += [member @ stacked[self._names.index(name)], member.sum(1)]  # (4,) each
        self._sums += torch.cat(parts)

    def _times(self, batch: MoleculeBatch, name: str) -> Tensor:
        """Return the times that the model has drawn, (num_valid,): functions of key and uid."""
        times = TIMES[self._loss.times](batch, self.STREAMS[name], self._loss.num_timesteps)
        return batch.valid(times)

    def read(self, part: str = "") -> tuple[dict[str, float], int, int]:
        """Return means over the molecules of all ranks, named as in metrics.jsonl; reset.

        Args:
            part: `validation/` or nothing.

        Returns:
            The scalars, none if there were no molecules; the numbers of molecules and of atoms.
        """
        dist.all_reduce(self._sums)
        sums = self._sums.tolist()
        self._sums.zero_()
        size = len(self._names)
        molecules, atoms = map(int, sums[size : size + 2])
        if not molecules:
            return {}, 0, 0
        found = {f"loss/{part}{n}": s / molecules for n, s in zip(self._names, sums, strict=False)}
        found[f"accuracy/{part}contrastive"] = found.pop(f"loss/{part}contrastive_accuracy")
        rest = iter(sums[size + 2 :])
        for name in self._timed:
            totals, counts = [[next(rest) for _ in QUARTERS] for _ in range(2)]
            for quarter, total, count in zip(QUARTERS, totals, counts, strict=True):
                if count:
                    found[f"loss_by_time/{part}{name}/{quarter}"] = total / count
        return found, molecules, atoms


class Stopwatch:
    """Seconds in the phases of steps. On a GPU its own events take the time, without waiting."""

    def __init__(self, device: torch.device) -> None:
        """Start from zero."""
        self._on_gpu = device.type == "cuda"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside; waiting for data is the host's time on any device."""
        if self._on_gpu and name != "data_wait":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            since = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - since

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase and start from zero; waits for the device."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


class Interval:
    """The steps since the last row of metrics: sums of their terms, and their times."""

    def __init__(self, device: torch.device, step: int, loss: LossConfig) -> None:
        """Begin after a step."""
        self.sums, self.watch = TermSums(device, loss), Stopwatch(device)
        self._device = device
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin anew after a step; sums and times were reset when they were read."""
        self._began, self._first_step = time.perf_counter(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside."""
        since = time.perf_counter()
        yield
        self._began += time.perf_counter() - since

    def scalars(self, step: int) -> dict[str, float]:
        """Return means, rates and times up to a step; every rank must call it."""
        means, molecules, atoms = self.sums.read()  # waits for the device and for the other ranks
        seconds, steps = time.perf_counter() - self._began, step - self._first_step
        phases = self.watch.read()
        return (
            means
            | {
                "throughput/molecules_per_s": molecules / seconds,
                "throughput/atoms_per_s": atoms / seconds,
                "time/step_s": seconds / steps,
                "time/data_wait_share": phases["data_wait"] / seconds,
            }
            | {f"time/{name}_s": spent / steps for name, spent in phases.items()}
            | self._stragglers(phases["data_wait"] + phases["forward"])
        )

    def _stragglers(self, own: float) -> dict[str, float]:
        """Return the slowest rank and its time over the median.

        Args:
            own: seconds of this rank before it waits for the others in the backward pass.
        """
        each = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=self._device)
        each[dist.get_rank()] = own
        dist.all_reduce(each)
        seconds = each.tolist()
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        ratio = seconds[slowest] / (statistics.median(seconds) or 1.0)
        return {"time/slowest_rank_over_median": ratio, "time/slowest_rank": slowest}
