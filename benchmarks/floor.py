"""What a machine can do at best: its rates, and the matrix products that a training step needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from msde.batch import MoleculeBatch
from msde.model import MoleculeSDE
from msde.ops import cpu as cpu_ops
from msde.ops import library

Shape = Sequence[int]


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of several runs: what others take of the machine is left out."""
    least = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begin)
    return least


def rates(repeats: int) -> dict[str, float]:
    """Measure the machine: bytes a second copied and FLOPs a second of matrix products."""
    big = torch.randn(1 << 24)
    other = torch.empty_like(big)
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    flops = 2 * 4096 * 1024 * 1024
    found = {
        "copy_bytes_per_s": 2 * big.nbytes / best(lambda: other.copy_(big), repeats),
        "torch_flops_per_s": flops / best(lambda: a @ b, repeats),
        "own_flops_per_s": 0.0,
    }
    if library.available():
        found["own_flops_per_s"] = flops / best(lambda: cpu_ops.linear(a, b, None, None), repeats)
    return found


def _linear(x: Shape, weight: Shape) -> int:
    return 2 * x[-2] * math.prod(weight)


def _edge_mlp(
    a: Shape, b: Shape, attr: Shape | None, attr_weight: Shape | None, weight: Shape, bias: Shape,
    activation: str, index: Shape, *_: Any, **__: Any,
) -> int:  # fmt: skip
    inputs = attr[1] if attr else 0
    return 2 * index[1] * a[1] * (inputs + weight[0])


def _edge_mlp_grad(g: Shape, *rest: Any, **_: Any) -> int:
    # Two products for each of the forward pass. That the hidden layer is made again costs more
    # than is needed, so it is no part of the floor.
    return 2 * _edge_mlp(*rest[:5], (), *rest[5:])


def _pair_sum(weight: Shape, x: Shape, *_: Any, **__: Any) -> int:
    return 4 * math.prod(weight) * x[2]  # each pair both ways


def _pair_attention(q: Shape, k: Shape, chunk: int, index: Shape, *_: Any, **__: Any) -> int:
    return 4 * index[1] * q[0] * q[2]


_aten, _msde = torch.ops.aten, torch.ops.msde
# The FLOPs of an op, given the shapes of its tensors: what torch's counter does not know.
FLOPS: dict[Any, Callable[..., int]] = {
    _aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1],  # torch counts addmm only
    _msde.linear: lambda x, weight, *_, **__: _linear(x, weight),
    _msde.linear_grad: lambda g, h, x, weight, activation, need_x, **_: (
        (1 + need_x) * _linear(x, weight)
    ),
    _msde.fourier_linear: lambda v, frequency, weight, bias, **_: _linear(v, weight),
    _msde.fourier_linear_grad: lambda g, v, frequency, **_: 4 * math.prod(g) * v[1] * frequency[0],
    _msde.edge_mlp: _edge_mlp,
    _msde.edge_mlp_grad: _edge_mlp_grad,
    _msde.pair_sum: _pair_sum,
    _msde.pair_dot: lambda x, g, index, *_, **__: 4 * index[1] * x[0] * x[2],
    _msde.pair_attention: _pair_attention,
    _msde.pair_attention_grad: lambda g, *rest, **_: 2 * _pair_attention(*rest),
}


def step_flops(model: MoleculeSDE, batch: MoleculeBatch) -> float:
    """Count the FLOPs of the matrix products of one forward and backward pass.

    Of the algorithm with all its savings: the fused ops count their real pairs and edges. Sums over
    edges, table look-ups, activations and the optimizer count nothing.
    """
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        loss, _ = model(batch)
        loss.backward()
    model.zero_grad()
    return float(counter.get_total_flops())
