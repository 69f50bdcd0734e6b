"""Layers on CPU tensors: memory for the results, and the C++ functions that fill it."""

from __future__ import annotations

from torch import Tensor, empty_like
from torch import get_num_threads as threads

from msde.ops.library import call, contiguous

# Sums over many rows are cut into this many parts, whatever the number of threads, and the parts
# are added up in order: so the bits are the same for any number.
PARTS = 32
SMALL = 10_000  # weights of a layer whose gradient is made PARTS times
# Of a larger layer: so many parts at most, of so many rows at least, with so many weights together.
LARGE_PARTS, LEAST_ROWS, LARGEST = 4, 252, 1 << 22
CODES = {
    activation: code
    for code, activation in enumerate([None, "relu", "silu", "shifted_softplus", "tanh", "elu"])
}


def _layer(x: Tensor, weight: Tensor, activation: str | None) -> tuple[list[Tensor], list[int]]:
    """Return inputs and weights as the C++ code reads them, and what it has to know of them."""
    *channels, outputs, inputs = weight.shape
    as_it_is = weight.stride(-1) == 1  # rows may be parts of longer ones
    as_it_is = as_it_is and (not channels or weight.stride(0) == outputs * weight.stride(1))
    x, weight = x.contiguous(), weight if as_it_is else weight.contiguous()
    facts = [*(channels or [1]), x.dim() == 2, x.shape[-2], inputs, outputs, weight.stride(-2)]
    return [x, weight], [*map(int, facts), CODES[activation]]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, plus: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return activation(x weight^T + bias) or x weight^T + bias + plus.

    And, for SiLU, what it is applied to.
    """
    (x, weight), facts = _layer(x, weight, activation)
    bias, plus = contiguous(bias, plus)
    y = x.new_empty(*weight.shape[:-2], x.shape[-2], weight.shape[-2])
    before = y.new_empty(y.shape if activation == "silu" else 0)
    call(
        "linear", x, weight, bias, *facts, y, before if len(before) else None, plus,
        threads(), dtype=x.dtype, strided=True,
    )  # fmt: skip
    return y, before


def linear_grad(
    g: Tensor, h: Tensor | None, x: Tensor, weight: Tensor, activation: str | None, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, if it needs one, weight and bias.

    Args:
        h: the result or, for SiLU, what it was applied to; None without activation.
    """
    g = g.contiguous()
    (x, weight), facts = _layer(x, weight, activation)
    *channels, outputs, inputs = weight.shape
    small = outputs * inputs <= SMALL
    gx, gz = x.new_empty(x.shape if need_x else 0), None
    g_weight, g_bias = x.new_empty(weight.shape), x.new_empty(weight.shape[:-1])
    few = min(LARGE_PARTS, x.shape[-2] // LEAST_ROWS, LARGEST // max(1, outputs * inputs))
    count = PARTS if small else max(1, few)
    parts = x.new_empty(count, *(channels if small else []), outputs, inputs + 1)
    if not small and h is not None:
        gz = g.new_empty(g.shape[-2:])
    call(
        "linear_grad", g, h, x, weight, *facts, int(small), gx if need_x else None, gz, parts,
        count, g_weight, g_bias, threads(), dtype=x.dtype, strided=True,
    )  # fmt: skip
    return gx, g_weight, g_bias


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, counted: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalised over its rows, which all count, and their mean and biased variance."""
    x, weight, bias = contiguous(x, weight, bias)
    rows, width = x.shape
    y, mean, variance = empty_like(x), empty_like(weight), empty_like(weight)
    parts = x.new_empty(PARTS, 2, width)
    call(
        "batch_norm", x, weight, bias, rows, width, int(relu), eps, parts, PARTS, mean, variance, y,
        threads(), dtype=x.dtype,
    )  # fmt: skip
    return y, mean, variance


def batch_norm_grad(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float,
    counted: None, mean: Tensor, variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias."""
    g, x, weight, bias = contiguous(g, x, weight, bias)
    rows, width = x.shape
    gx, g_weight, g_bias = map(empty_like, (x, weight, bias))
    parts = x.new_empty(PARTS, 2, width)
    call(
        "batch_norm_grad", g, x, weight, bias, rows, width, int(relu), eps, mean, variance, gx,
        parts, PARTS, g_weight, g_bias, threads(), dtype=x.dtype,
    )  # fmt: skip
    return gx, g_weight, g_bias


def row_dot(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Return the scalar products of each row of x with some of y, shaped like `at`."""
    x, y, at = contiguous(x, y, at)
    out = x.new_empty(at.shape)
    sizes = (len(x), *y.shape, at.shape[1])
    call("row_dot", x, y, at, *sizes, out, threads(), dtype=x.dtype)
    return out


def row_dot_grad(g: Tensor, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and y."""
    g, x, y, at = contiguous(g, x, y, at)
    gx, gy, sizes = empty_like(x), empty_like(y), (len(x), *y.shape, at.shape[1])
    call("row_dot_grad", g, x, y, at, *sizes, gx, gy, threads(), dtype=x.dtype)
    return gx, gy


def fourier_linear(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map v, (rows, scalars), to (rows, outputs)."""
    v, frequency, weight, bias = contiguous(v, frequency, weight, bias)
    y = v.new_empty(len(v), len(weight))
    call(
        "fourier_linear", v, frequency, weight, *v.shape, len(frequency), len(weight), bias, y,
        threads(), dtype=v.dtype,
    )  # fmt: skip
    return y


def fourier_linear_grad(g: Tensor, v: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias."""
    g, v, frequency = contiguous(g, v, frequency)
    outputs, inputs = g.shape[1], 2 * v.shape[1] * len(frequency)
    g_weight, g_bias = v.new_empty(outputs, inputs), v.new_empty(outputs)
    parts = v.new_empty(PARTS, outputs, inputs + 1)
    call(
        "fourier_linear_grad", g, v, frequency, *v.shape, len(frequency), outputs, parts, PARTS,
        g_weight, g_bias, threads(), dtype=v.dtype,
    )  # fmt: skip
    return g_weight, g_bias
