"""How many FLOPs the matrix products of a step need, and how many of them a device could do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msde.data.batch import MoleculeBatch

Shape = Sequence[int]


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


# Dense peaks by the makers' data sheets, in FLOPs a second: bfloat16, TF32, float32.
_PEAKS = {
    "H200": (989.4e12, 494.7e12, 66.9e12),
    "H100 80GB HBM3": (989.4e12, 494.7e12, 66.9e12),
    "A100": (312e12, 156e12, 19.5e12),
}


def counting() -> FlopCounterMode:
    """Count the FLOPs of the matrix products inside: `get_total_flops` of what this returns.

    The fused ops count their real pairs and edges. Sums over edges, table look-ups, activations and
    the optimizer count nothing.
    """
    return FlopCounterMode(display=False, custom_mapping=FLOPS)


class FlopsCounter:
    """The FLOPs of a run's matrix products, counted once."""

    def __init__(self, world_size: int, bfloat16: bool) -> None:
        """Prepare for a run of so many ranks, with products in bfloat16 or not."""
        self._world_size, self._peak = world_size, peak(bfloat16)
        self._per_molecule: float | None = None

    def forward(
        self, model: Callable[[MoleculeBatch], tuple], batch: MoleculeBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the model makes of a batch; the first time, count."""
        if self._per_molecule is not None:
            return model(batch)
        with counting() as counter:
            result = model(batch)
        # A backward pass has two products for each one of the forward pass.
        self._per_molecule = 3 * counter.get_total_flops() / len(batch.valid(batch.uid))
        return result

    def scalars(self, molecules_per_s: float) -> dict[str, float]:
        """Return what each rank does at this speed of all ranks, and the share of its peak."""
        if self._per_molecule is None:
            return {}
        each = self._per_molecule * molecules_per_s / self._world_size
        found = {"throughput/tflops_per_rank": each / 1e12}
        if self._peak is not None:
            found["throughput/model_flops_utilisation"] = each / self._peak
        return found


def peak(bfloat16: bool) -> float | None:
    """Return the FLOPs a second that the GPU in use could do at best, or None: it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    for known, (of_bfloat16, of_tf32, of_float32) in _PEAKS.items():
        if known in name:
            if bfloat16:
                return of_bfloat16
            exact = torch.get_float32_matmul_precision() == "highest"
            return of_float32 if exact else of_tf32
    return None
