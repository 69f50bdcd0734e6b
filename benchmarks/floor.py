"""What a machine can do at best: its rates, and the matrix products that a training step needs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from msde.batch import MoleculeBatch
from msde.flops import counting
from msde.model import MoleculeSDE
from msde.ops import cpu as cpu_ops
from msde.ops import library

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Return the time in seconds when a GPU has done all that it was told."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of several runs: what others take of the machine is left out."""
    least = float("inf")
    for _ in range(repeats):
        begin = now()
        work()
        least = min(least, now() - begin)
    return least


def rates(repeats: int) -> dict[str, float]:
    """Measure the machine: bytes a second copied and FLOPs a second of matrix products."""
    big = torch.randn(1 << 24, device=DEVICE)
    other = torch.empty_like(big)
    a, b = torch.randn(4096, 1024, device=DEVICE), torch.randn(1024, 1024, device=DEVICE)
    flops = 2 * 4096 * 1024 * 1024
    found = {
        "copy_bytes_per_s": 2 * big.nbytes / best(lambda: other.copy_(big), repeats),
        "torch_flops_per_s": flops / best(lambda: a @ b, repeats),
        "own_flops_per_s": 0.0,
    }
    if DEVICE.type == "cpu" and library.available():
        found["own_flops_per_s"] = flops / best(lambda: cpu_ops.linear(a, b, None, None), repeats)
    return found


def step_flops(model: MoleculeSDE, batch: MoleculeBatch) -> float:
    """Count the FLOPs of the matrix products of one forward and backward pass.

    Of the algorithm with all its savings: the fused ops count their real pairs and edges. Sums over
    edges, table look-ups, activations and the optimizer count nothing.
    """
    with counting() as counter:
        loss, _ = model(batch)
        loss.backward()
    model.zero_grad()
    return float(counter.get_total_flops())
