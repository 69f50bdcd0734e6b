"""Linear maps with an activation, and scalar products of rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from msde.ops import cpp, dispatch
from msde.ops.cpp import PARTS, call

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "shifted_softplus": lambda x: nn.functional.softplus(x) - math.log(2),
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
}  # their places are those of `Activation` in C++
SMALL = 10_000  # weights of a layer whose gradient is made in PARTS of the rows
# Of a larger layer: so many parts at most, of so many rows at least, with so many weights together.
LARGE_PARTS, LEAST_ROWS, LARGEST = 4, 252, 1 << 22


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """Return activation(x weight^T + bias) or x weight^T + bias + plus.

    Args:
        x: (..., inputs), or (channels, rows, inputs) for weights of channels, which may share
            (rows, inputs).
        weight: (outputs, inputs) or (channels, outputs, inputs).
        bias: (outputs,) or (channels, outputs).
        activation: one of `ACTIVATIONS`; not together with `plus`.
        plus: of the result's shape.

    Returns:
        (..., outputs) or (channels, rows, outputs).

    Raises:
        ValueError: there are both an activation and `plus`.
        RuntimeError: the shapes do not fit.
    """
    if not (activation is None or plus is None):
        raise ValueError(f"a layer has the activation {activation} or something to add, not both")
    flat = x.dim() == 2 or weight.dim() == 3
    if not _fused(x, weight, bias, plus, flat):
        return _linear_reference(x, weight, bias, activation, plus)
    if flat:
        return _linear(x, weight, bias, activation, plus)[0]
    return _linear(x.flatten(0, -2), weight, bias, activation, None)[0].unflatten(0, x.shape[:-1])


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, flat: bool) -> bool:
    """Return whether the C++ code takes these. Shapes that do not fit are left to torch."""
    if not x.is_cpu or x.dim() < 2 or weight.dim() < 2 or x.shape[-1] != weight.shape[-1]:
        return False
    if bias is not None and bias.shape != weight.shape[:-1]:
        return False
    if weight.dim() == 3 and x.dim() != 2 and x.shape[:-2] != weight.shape[:1]:
        return False
    if plus is not None:
        shape = (*weight.shape[:-2], x.shape[-2], weight.shape[-2])
        if not flat or plus.shape != shape:
            return False
    return dispatch.backend(x, weight, bias, plus) == "cpp" and _is_faster_than_torch()


@dispatch.constant_when_compiled
def _is_faster_than_torch() -> bool:
    """Return whether products by the C++ code are faster than torch's.

    A compiled step keeps the choice of the precision that it was compiled at.
    """
    # On an Intel processor with AMX a training step (paper, 256 molecules) takes 0.6 times as long
    # as with torch's products at `medium` precision, and about as long at `highest`.
    tiles = cpp.has_tiles() and torch.get_float32_matmul_precision() == "medium"
    return tiles or _has_slow_products()


@functools.cache
def _has_slow_products() -> bool:
    """Return whether torch's products leave out what the processor can do: not those of Intel."""
    # On an AMD EPYC with AVX2 and one thread a training step (paper, 256 molecules) takes 1.17 to
    # 1.28 times as long with torch's products, and 1.12 to 1.30 times with oneDNN's fused linear.
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, plus: Tensor | None
) -> Tensor:
    if weight.dim() != 3:
        y = nn.functional.linear(x, weight, bias)
    elif x.dim() == 2:
        # One product with the stacked weights instead of one a channel.
        y = nn.functional.linear(x, weight.flatten(0, 1)).unflatten(1, weight.shape[:2])
        y = y.transpose(0, 1)
    else:
        y = torch.bmm(x, weight.mT)
    if weight.dim() == 3 and bias is not None:
        y = y + bias.unsqueeze(1)
    return ACTIVATIONS[activation](y) if plus is None else y + plus


def _keep(inputs: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor | None]:
    """Return the tensor from which the activation's derivative is computed."""
    (y, before), activation = output, inputs[3]
    return (before if activation == "silu" else None if activation is None else y,)


def _linear_gradient(needed, g, x, weight, bias, activation, plus, h):
    gx, g_weight, g_bias = _linear_grad(g, h, x, weight, activation, needed[0])
    found = (gx, g_weight, g_bias, None, g)
    return [grad if need else None for grad, need in zip(found, needed, strict=True)]


def _layer(x: Tensor, weight: Tensor, activation: str | None) -> list[int]:
    """Return the sizes of a layer as the C++ code takes them."""
    *channels, outputs, inputs = weight.shape
    sizes = [*(channels or [1]), x.dim() == 2, x.shape[-2], inputs, outputs]
    return [*sizes, list(ACTIVATIONS).index(activation)]


def _linear_cpp(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, plus: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the result and, for SiLU, the activation's input."""
    y = x.new_empty(*weight.shape[:-2], x.shape[-2], weight.shape[-2])
    before = y.new_empty(y.shape if activation == "silu" else 0)
    kept = before if activation == "silu" else None
    call("linear", x, weight, bias, *_layer(x, weight, activation), y, kept, plus)
    return y, before


def _linear_grad_cpp(
    g: Tensor, h: Tensor | None, x: Tensor, weight: Tensor, activation: str | None, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, if it needs one, weight and bias; for h see `_keep`."""
    *channels, outputs, inputs = weight.shape
    small = outputs * inputs <= SMALL
    gx = x.new_empty(x.shape if need_x else 0)
    g_weight, g_bias = x.new_empty(weight.shape), x.new_empty(weight.shape[:-1])
    few = min(LARGE_PARTS, x.shape[-2] // LEAST_ROWS, LARGEST // max(1, outputs * inputs))
    count = PARTS if small else max(1, few)
    parts = x.new_empty(count, *(channels if small else []), outputs, inputs + 1)
    gz = None if small or h is None else g.new_empty(g.shape[-2:])
    call(
        "linear_grad", g, h, x, weight, *_layer(x, weight, activation), small,
        gx if need_x else None, gz, parts, count, g_weight, g_bias,
    )  # fmt: skip
    return gx, g_weight, g_bias


# On GPUs plain torch is used.
_linear = dispatch.register(
    "linear", _linear_cpp, gradient=_linear_gradient, reference=_linear_reference, keep=_keep
)
_linear_grad = dispatch.register(
    "linear_grad", _linear_grad_cpp, gradient=dispatch.no_second_derivative
)


def row_dot(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Return the scalar products of each row of x with some rows of y, (rows, count).

    Args:
        x: (rows, width).
        y: (others, width).
        at: (rows, count) which rows of y.
    """
    if x.shape[-1] == y.shape[-1] and len(x) == len(at) and dispatch.backend(x, y) == "cpp":
        return _row_dot(x, y, at)
    return _row_dot_reference(x, y, at)


def _row_dot_reference(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    rows = y.index_select(0, at.flatten()).unflatten(0, at.shape)  # (rows, count, width)
    return (x.unsqueeze(1) * rows).sum(-1)


def _row_dot_gradient(needed, g, *inputs):
    return _row_dot_grad(g, *inputs)


def _row_dot_cpp(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    at, out = at.contiguous(), x.new_empty(at.shape)
    call("row_dot", x, y, at, x.shape[0], *y.shape, at.shape[1], out)
    return out


def _row_dot_grad_cpp(g: Tensor, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and y."""
    at, gx, gy = at.contiguous(), torch.empty_like(x), torch.empty_like(y)
    call("row_dot_grad", g, x, y, at, x.shape[0], *y.shape, at.shape[1], gx, gy)
    return gx, gy


_row_dot = dispatch.register(
    "row_dot", _row_dot_cpp, gradient=_row_dot_gradient, reference=_row_dot_reference
)
_row_dot_grad = dispatch.register(
    "row_dot_grad", _row_dot_grad_cpp, gradient=dispatch.no_second_derivative
)
