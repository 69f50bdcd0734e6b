"""A linear map of Fourier features, which are never materialised."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from msde.ops import dispatch
from msde.ops.cpp import PARTS, call


def fourier_linear(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a linear map of `fourier_features` of each row's scalars, (rows, outputs).

    Args:
        v: (rows, scalars).
        frequency: (num_frequencies,).
        weight, bias: (outputs, scalars * 2 * num_frequencies) and (outputs,).
    """
    if not v.requires_grad and dispatch.backend(v, frequency, weight, bias) == "cpp":
        return _fourier_linear(v, frequency, weight, bias)
    return _reference(v, frequency, weight, bias)


def fourier_features(v: Tensor, frequency: Tensor) -> Tensor:
    """Return [sin(2 pi v w), cos(2 pi v w)] of v, (...,): (..., 2 * num_frequencies)."""
    angle = v.unsqueeze(-1) * (2 * math.pi * frequency)  # (..., num_frequencies)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _reference(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.linear(fourier_features(v, frequency).flatten(1), weight, bias)


def _gradient(needed, g, v, frequency, weight, bias):
    return (None, None, *_fourier_linear_grad(g, v, frequency))


def _cpp(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = v.new_empty(v.shape[0], weight.shape[0])
    sizes = (*v.shape, frequency.shape[0], weight.shape[0])
    call("fourier_linear", v, frequency, weight, *sizes, bias, y)
    return y


def _grad_cpp(g: Tensor, v: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias."""
    outputs, inputs = g.shape[1], 2 * v.shape[1] * frequency.shape[0]
    g_weight, g_bias = v.new_empty(outputs, inputs), v.new_empty(outputs)
    parts = v.new_empty(PARTS, outputs, inputs + 1)
    sizes = (*v.shape, frequency.shape[0], outputs)
    call("fourier_linear_grad", g, v, frequency, *sizes, parts, PARTS, g_weight, g_bias)
    return g_weight, g_bias


# On GPUs plain torch is used.
_fourier_linear = dispatch.register(
    "fourier_linear", _cpp, gradient=_gradient, reference=_reference
)
_fourier_linear_grad = dispatch.register(
    "fourier_linear_grad", _grad_cpp, gradient=dispatch.no_second_derivative
)
