"""Layers on CUDA tensors: memory for the results, and the Triton kernels that fill it."""

from __future__ import annotations

import triton
from torch import Tensor, empty_like

from msde.ops.library import contiguous
from msde.ops.triton import layers as kernels

PARTS = 64  # into which sums over all rows are cut
BLOCK = 64  # columns taken together
TILE = 32  # rows taken together
EDGES = 128  # taken together
EDGES_OF_ATOM = 16


def _across(width: int) -> int:
    return triton.cdiv(width, BLOCK)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalised over its rows, and their mean and biased variance."""
    x, weight, bias = contiguous(x, weight, bias)
    (rows, width), has_counted = x.shape, counted is not None
    y, mean, variance = map(empty_like, (x, weight, weight))
    parts = x.new_empty(PARTS, 2, width)
    number = x if counted is None else counted
    kernels.batch_norm_parts[(PARTS, _across(width))](
        x, number, parts, rows, width, has_counted, PARTS, BLOCK
    )
    kernels.batch_norm_statistics[(_across(width),)](
        parts, number, mean, variance, rows, width, has_counted, PARTS, BLOCK
    )
    kernels.batch_norm[(triton.cdiv(rows, TILE), _across(width))](
        x, weight, bias, mean, variance, y, rows, width, eps, relu, TILE, BLOCK
    )
    return y, mean, variance


def batch_norm_grad(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float,
    counted: Tensor | None, mean: Tensor, variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias."""
    g, x, weight, bias = contiguous(g, x, weight, bias)
    (rows, width), gx, parts = x.shape, empty_like(x), x.new_empty(PARTS, 2, x.shape[1])
    kernels.batch_norm_grad_parts[(PARTS, _across(width))](
        g, x, weight, bias, mean, variance, parts, rows, width, eps, relu, PARTS, BLOCK
    )
    g_weight, g_bias = (part.sum(0) for part in parts.unbind(1))
    kernels.batch_norm_grad[(triton.cdiv(rows, TILE), _across(width))](
        g, x, weight, bias, mean, variance, g_weight, g_bias, x if counted is None else counted,
        gx, rows, width, eps, relu, counted is not None, TILE, BLOCK,
    )  # fmt: skip
    return gx, g_weight, g_bias


def edge_geometry(
    pos: Tensor, index: Tensor, collinear: float, epsilon: float
) -> tuple[Tensor, ...]:
    """Return frames, both ends' coordinates, angles and distances of edges."""
    pos, index = contiguous(pos, index)
    edges = index.shape[1]
    found = tuple(pos.new_empty(edges, *shape) for shape in ((3, 3), (2,), (2,), (2,), ()))
    if edges:
        # Fused products would make a x b differ from -(b x a).
        kernels.edge_geometry[(triton.cdiv(edges, EDGES),)](
            pos, index, *found, edges, collinear, epsilon, EDGES, enable_fp_fusion=False
        )
    return found


def frame_mean(b: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    """Return the mean over the edges into each atom of sum_k b_k frame_k, (num_atoms, 3)."""
    b, frames = contiguous(b, frames)
    y = b.new_empty(len(row_ptr) - 1, 3)
    kernels.frame_mean[(len(y),)](b, frames, row_ptr, y)
    return y


def frame_mean_grad(g: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    """Return the gradient of b, (num_edges, 3)."""
    g, frames = contiguous(g, frames)
    gb = g.new_empty(len(frames), 3)
    kernels.frame_mean_grad[(len(g),)](g, frames, row_ptr, gb, EDGES_OF_ATOM)
    return gb
