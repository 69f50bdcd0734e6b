"""The peak rates of a machine, and the matrix products of a training step."""

from __future__ import annotations

import contextlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterator

import torch

from msde.data.batch import MoleculeBatch
from msde.model import MoleculeSDE
from msde.monitor.flops import counting
from msde.ops import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Return the time in seconds, once a GPU has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def waits_of_the_host() -> Iterator[list[str]]:
    """Collect where the host waits for the GPU within the block, for a tensor or for all work."""
    found: list[str] = []
    synchronize = torch.cuda.synchronize

    def noted(*arguments: object) -> None:
        found.append(traceback.format_stack(limit=2)[0].strip())
        synchronize(*arguments)

    torch.cuda.synchronize = noted  # torch's mode reports tensors alone
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize = synchronize
    found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of several runs, which other processes disturb least."""
    least = float("inf")
    for _ in range(repeats):
        begin = now()
        work()
        least = min(least, now() - begin)
    return least


class Products:
    """The present rate of a matrix product by torch and, on a CPU, by the C++ code."""

    def __init__(self) -> None:
        """Make two matrices, 4096 x 1024 and 1024 x 1024."""
        a, b = torch.randn(4096, 1024, device=DEVICE), torch.randn(1024, 1024, device=DEVICE)
        self.work: dict[str, Callable[[], object]] = {"torch_flops_per_s": lambda: a @ b}
        if DEVICE.type == "cpu" and dispatch.available():
            self.work["own_flops_per_s"] = lambda: torch.ops.msde.linear(a, b, None, None, None)
        self.flops = 2 * 4096 * 1024 * 1024

    def rates(self, repeats: int) -> dict[str, float]:
        """Return FLOPs a second, by the best of some runs of each."""
        return {name: self.flops / best(work, repeats) for name, work in self.work.items()}


def rates(repeats: int) -> dict[str, float]:
    """Measure the machine: bytes a second copied and FLOPs a second of matrix products."""
    big = torch.randn(1 << 24, device=DEVICE)
    other = torch.empty_like(big)
    copied = 2 * big.nbytes / best(lambda: other.copy_(big), repeats)
    return {"copy_bytes_per_s": copied, **Products().rates(repeats)}


def product_rate(found: dict[str, float]) -> float:
    """Return the faster rate of the two kinds of matrix products, in FLOPs a second."""
    return max(rate for name, rate in found.items() if name.endswith("flops_per_s"))


def step_flops(model: MoleculeSDE, batch: MoleculeBatch) -> float:
    """Count the FLOPs of the matrix products of one forward and backward pass, see `counting`."""
    with counting() as counter:
        loss, _ = model(batch)
        loss.backward()
    model.zero_grad()
    return float(counter.get_total_flops())
