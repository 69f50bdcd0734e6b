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
from msde.model import NAMES_OF_TIMES, names_of_terms

QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")  # of the diffusion time
PHASES = ("data_wait", "forward", "backward", "optimizer")  # of a step, in their order


class TermSums:
    """Sums of the model's named terms over molecules, kept on the device until they are read.

    The two denoising losses are also summed by the quarter of the diffusion time that a molecule
    has drawn. Molecules with a term that is not finite are not counted; `step_guard` reports them.
    """

    def __init__(self, device: torch.device, loss: LossConfig) -> None:
        """Start from zero; `loss` says which terms there are."""
        self._names = names_of_terms(loss)
        # Objectives that are off are zero in the model's terms: no loss of them is shown.
        off = {name for name in self._names if not getattr(loss, f"coefficient_{name}", 1)}
        self._off = off | {"contrastive_accuracy"} if "contrastive" in off else off
        directions = (name.removeprefix("t_") for name in NAMES_OF_TIMES)
        self._timed = [name for name in directions if getattr(loss, f"coefficient_{name}")]
        self._quarters = torch.arange(len(QUARTERS), device=device).unsqueeze(1)  # (4, 1)
        # A row for each quarter of each loss, and one for all times; a column for each term, for
        # the atoms and for the molecules.
        shape = (1 + len(self._timed) * len(QUARTERS), len(self._names) + 2)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._zero = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, terms: dict[str, Tensor], batch: MoleculeBatch) -> None:
        """Add what the model has returned for one slot."""
        one = torch.ones_like(terms["total"])  # (num_valid,)
        columns = [*(terms[name] for name in self._names), batch.valid(batch.atoms_per_graph), one]
        values = torch.stack(columns).double()  # (columns, num_valid)
        finite = (values - values == 0).all(0)  # (num_valid,), in fewer launches than isfinite
        values = torch.where(finite, values, self._zero)
        rows = [one.unsqueeze(0)]
        for name in self._timed:
            quarter = (terms[f"t_{name}"] * len(QUARTERS)).long()  # (num_valid,)
            rows.append(quarter == self._quarters)  # (4, num_valid)
        self._sums += torch.cat(rows).double() @ values.T

    def read(self, part: str = "") -> tuple[dict[str, float], int, int]:
        """Return means over the molecules of all ranks, named as in metrics.jsonl; reset.

        Args:
            part: `validation/` or nothing.

        Returns:
            The scalars, none if there were no molecules; the numbers of molecules and of atoms.
        """
        dist.all_reduce(self._sums)
        sums, *by_time = self._sums.tolist()
        self._sums.zero_()
        *losses, atoms, molecules = sums
        if not molecules:
            return {}, 0, 0
        found = {
            f"loss/{part}{name}": total / molecules
            for name, total in zip(self._names, losses, strict=True)
            if name not in self._off
        }
        if "contrastive_accuracy" not in self._off:
            found[f"accuracy/{part}contrastive"] = found.pop(f"loss/{part}contrastive_accuracy")
        rows = iter(by_time)
        for name in self._timed:
            column = self._names.index(name)
            for quarter in QUARTERS:
                row = next(rows)
                if row[-1]:
                    found[f"loss_by_time/{part}{name}/{quarter}"] = row[column] / row[-1]
        return found, int(molecules), int(atoms)


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
