"""FLOPs of the matrix products of a training step, and the peak rate of a device."""

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
    # Two products for each one of the forward pass. The recomputed hidden layer is not counted.
    return 2 * _edge_mlp(*rest[:5], (), *rest[5:])


def _all_pairs(
    pos: Shape, a: Shape, b: Shape, known: Shape, attr_weight: Shape, weight: Shape, *_: Any,
    **__: Any,
) -> int:  # fmt: skip
    # As edge_mlp would make them: its products by heads are fewer and depend on their number.
    return 2 * known[0] * a[1] * (attr_weight[1] + 2 * weight[0])


def _pair_sum(weight: Shape, x: Shape, *_: Any, **__: Any) -> int:
    return 4 * math.prod(weight) * x[2]  # each pair in both orders


def _pair_attention(q: Shape, k: Shape, chunk: int, index: Shape, *_: Any, **__: Any) -> int:
    return 4 * index[1] * q[0] * q[2]


_aten, _msde = torch.ops.aten, torch.ops.msde
# FLOPs of the ops that torch's counter does not know, given the shapes of their tensors.
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
    _msde.all_pairs: _all_pairs,
    _msde.pair_sum: _pair_sum,
    _msde.pair_dot: lambda x, g, index, *_, **__: 4 * index[1] * x[0] * x[2],
    _msde.pair_attention: _pair_attention,
    _msde.pair_attention_grad: lambda g, *rest, **_: 2 * _pair_attention(*rest),
}


# Dense peak rates by NVIDIA's data sheets, in FLOPs a second: bfloat16, TF32, float32.
PEAKS = {
    "H200": (989.4e12, 494.7e12, 66.9e12),
    "H100 80GB HBM3": (989.4e12, 494.7e12, 66.9e12),
    "A100": (312e12, 156e12, 19.5e12),
}


def counting() -> FlopCounterMode:
    """Return a context that counts FLOPs of matrix products; read them by `get_total_flops`.

    The fused ops count their actual pairs and edges. Sums over edges, table lookups, activations
    and the optimizer count nothing.
    """
    return FlopCounterMode(display=False, custom_mapping=FLOPS)


class FlopsCounter:
    """The FLOPs of a run's matrix products, counted in its first forward pass."""

    def __init__(self, world_size: int, bfloat16: bool) -> None:
        """Set the number of ranks, and whether matrix products are in bfloat16."""
        self._world_size, self._peak = world_size, peak(bfloat16)
        self._per_molecule: float | None = None

    def forward(
        self, model: Callable[[MoleculeBatch], tuple], batch: MoleculeBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the model's loss and terms of a batch, and count FLOPs in the first call."""
        if self._per_molecule is not None:
            return model(batch)
        with counting() as counter:
            result = model(batch)
        # The backward pass has two products for each one of the forward pass.
        self._per_molecule = 3 * counter.get_total_flops() / len(batch.valid(batch.uid))
        return result

    def scalars(self, molecules_per_s: float) -> dict[str, float]:
        """Return FLOPs a second of each rank, and their share of its peak where that is known.

        Args:
            molecules_per_s: of all ranks together.
        """
        if self._per_molecule is None:
            return {}
        each = self._per_molecule * molecules_per_s / self._world_size
        found = {"throughput/tflops_per_rank": each / 1e12}
        if self._peak is not None:
            found["throughput/model_flops_utilisation"] = each / self._peak
        return found


def peak(bfloat16: bool) -> float | None:
    """Return the peak FLOPs a second of the GPU in use, or None where that is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    for known, (of_bfloat16, of_tf32, of_float32) in PEAKS.items():
        if known in name:
            if bfloat16:
                return of_bfloat16
            exact = torch.get_float32_matmul_precision() == "highest"
            return of_float32 if exact else of_tf32
    return None
