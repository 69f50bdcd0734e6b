"""BatchNorm over rows, and over the directed edges without materialising a row for each edge.

With `num_valid`, a tensor, the rows or atoms after so many first ones are padding: they are
normalised, too, but have no part in the statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msde.ops import dispatch, triton
from msde.ops.cpp import PARTS, call
from msde.ops.graphs import Edges
from msde.ops.messages import SumOverEdges, sum_over_edges

TILES = 4  # of rows, that a Triton program has after it has put the statistics together


def batch_norm(
    x: Tensor, norm: nn.BatchNorm1d, relu: bool = False, num_valid: Tensor | None = None
) -> Tensor:
    """Return norm(x), (rows, width), or relu of it.

    Fewer than two rows have no statistics, and the running ones are used.

    Args:
        num_valid: () the rows after so many are padding; None means that there is none.
    """
    backend = dispatch.backend(x, norm.weight)
    if not norm.training or backend == "torch" or len(x) < 2:
        return _batch_norm_reference(x, norm, relu, num_valid)
    if backend == "cpp" and num_valid is not None:
        return _batch_norm_reference(x, norm, relu, num_valid)
    y, mean, variance = _batch_norm(x, norm.weight, norm.bias, relu, norm.eps, num_valid)
    _update_statistics(norm, mean, variance, len(x) if num_valid is None else num_valid)
    return y


def is_recompute() -> bool:
    """Return whether this is the forward pass that activation checkpointing runs once more."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@torch.no_grad()
def _update_statistics(
    norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, rows: int | Tensor
) -> None:
    """Update the running statistics with the mean and the biased variance of some rows, once."""
    if is_recompute():
        return
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
    norm.num_batches_tracked += 1


def _batch_norm_reference(
    x: Tensor, norm: nn.BatchNorm1d, relu: bool, num_valid: Tensor | None
) -> Tensor:
    if norm.training and num_valid is not None:
        affine = norm.weight, norm.bias
        y, mean, variance = normalised_over_valid_rows(x, *affine, relu, norm.eps, num_valid)
        _update_statistics(norm, mean, variance, num_valid)
        return y
    statistics = norm.running_mean, norm.running_var
    of_batch = norm.training and len(x) > 1
    if of_batch and is_recompute():
        statistics = tuple(map(torch.clone, statistics))  # not to be updated twice
    elif of_batch:
        norm.num_batches_tracked += 1
    y = nn.functional.batch_norm(
        x, *statistics, norm.weight, norm.bias, of_batch, norm.momentum, norm.eps
    )
    return torch.relu(y) if relu else y


def _normalised_over_rows(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, num_valid: Tensor | None
) -> Tensor:
    """Return x, (rows, width), with each column normalised by its own mean and variance."""
    if num_valid is not None:
        return normalised_over_valid_rows(x, weight, bias, relu, eps, num_valid)[0]
    y = nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return torch.relu(y) if relu else y


def normalised_over_valid_rows(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, num_valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalised by the mean and the biased variance of its valid rows, and both."""
    valid = _is_valid(len(x), num_valid).unsqueeze(1)
    wide = x.to(weight.dtype)  # sums of many rows
    mean = torch.where(valid, wide, 0).sum(0) / num_valid
    centred = wide - mean
    variance = torch.where(valid, centred, 0).square().sum(0) / num_valid
    y = torch.addcmul(bias, centred, weight * torch.rsqrt(variance + eps)).to(x.dtype)
    return torch.relu(y) if relu else y, mean, variance


def _is_valid(rows: int, num_valid: Tensor) -> Tensor:
    return torch.arange(rows, device=num_valid.device) < num_valid  # (rows,)


def _batch_norm_gradient(needed, g, *inputs):
    return _batch_norm_grad(g, *inputs)


def _batch_norm_cpp(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, num_valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalised over its rows, all valid, and their mean and biased variance."""
    (rows, width), parts = x.shape, x.new_empty(PARTS, 2, x.shape[1])
    y, mean, variance = map(torch.empty_like, (x, weight, weight))
    sizes = (rows, width, relu, eps)
    call("batch_norm", x, weight, bias, *sizes, parts, PARTS, mean, variance, y)
    return y, mean, variance


def _batch_norm_triton(x, weight, bias, relu, eps, num_valid):
    kernels, across = triton.kernels("norms"), triton.cdiv(x.shape[1], triton.BLOCK)
    (rows, width), has_padding = x.shape, num_valid is not None
    y, mean, variance = map(torch.empty_like, (x, weight, weight))
    parts, number = x.new_empty(triton.PARTS, 2, width), num_valid if has_padding else x
    kernels.batch_norm_parts[(triton.PARTS, across)](
        x, number, parts, rows, width, has_padding, triton.PARTS, triton.TILE, triton.BLOCK
    )
    kernels.batch_norm[(triton.cdiv(rows, TILES * triton.TILE), across)](
        x, weight, bias, parts, number, mean, variance, y, rows, width, eps, relu, has_padding,
        triton.PARTS, TILES, triton.TILE, triton.BLOCK,
    )  # fmt: skip
    return y, mean, variance


def _batch_norm_grad_cpp(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float,
    num_valid: Tensor | None, mean: Tensor, variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias."""
    gx, g_weight, g_bias = map(torch.empty_like, (x, weight, bias))
    sizes, parts = (*x.shape, relu, eps), x.new_empty(PARTS, 2, x.shape[1])
    results = (gx, parts, PARTS, g_weight, g_bias)
    call("batch_norm_grad", g, x, weight, bias, *sizes, mean, variance, *results)
    return gx, g_weight, g_bias


def _batch_norm_grad_triton(g, x, weight, bias, relu, eps, num_valid, mean, variance):
    kernels, across = triton.kernels("norms"), triton.cdiv(x.shape[1], triton.BLOCK)
    (rows, width), has_padding = x.shape, num_valid is not None
    gx, g_weight, g_bias = map(torch.empty_like, (x, weight, bias))
    parts = x.new_empty(triton.PARTS, 2, width)
    given = (g, x, weight, bias, mean, variance)
    kernels.batch_norm_grad_parts[(triton.PARTS, across)](
        *given, parts, rows, width, eps, relu, triton.PARTS, triton.TILE, triton.BLOCK
    )
    kernels.batch_norm_grad[(triton.cdiv(rows, TILES * triton.TILE), across)](
        *given, parts, g_weight, g_bias, num_valid if has_padding else x, gx, rows, width, eps,
        relu, has_padding, triton.PARTS, TILES, triton.TILE, triton.BLOCK,
    )  # fmt: skip
    return gx, g_weight, g_bias


_batch_norm = dispatch.register(
    "batch_norm",
    _batch_norm_cpp,
    _batch_norm_triton,
    gradient=_batch_norm_gradient,
    reference=_normalised_over_rows,
)
_batch_norm_grad = dispatch.register(
    "batch_norm_grad",
    _batch_norm_grad_cpp,
    _batch_norm_grad_triton,
    gradient=dispatch.no_second_derivative,
)


def edge_norm(a: Tensor, b: Tensor, norm: nn.BatchNorm1d, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return a', b' with a'_source + b'_target = norm(a_source + b_target) for every edge.

    Normalising is an affine map, so it can be made at the atoms. The running statistics are updated
    as BatchNorm1d does. With fewer than two edges there are no statistics of the batch, and the
    running ones are used.

    Args:
        a, b: (num_atoms, width), the shares of the source and of the target.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(norm.weight.dtype), b.to(norm.weight.dtype)
        affine, num_edges = (norm.weight, norm.bias, norm.eps), edges.index.shape[1]
        if not (norm.training and num_edges > 1):
            return _scaled(a, b, *affine, norm.running_mean, norm.running_var)
        graph, rows = (edges.index, edges.row_ptr), num_edges
        if edges.num_valid is None and dispatch.backend(a, b, norm.weight) == "cpp":
            a, b, means, variance = _edge_norm(a, b, *affine, *graph)
        else:
            a, b, means, variance = _normalised_over_edges(
                a, b, *affine, *graph, edges.num_valid, lambda x: sum_over_edges(x, edges)
            )
        if edges.num_valid is not None:  # not row_ptr[num_valid], for which a GPU's host waits
            rows = edges.row_ptr.index_select(0, edges.num_valid.view(1))
        _update_statistics(norm, means.sum(0), variance, rows)
        return a, b


def _normalised_over_edges(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    index: Tensor,
    row_ptr: Tensor,
    num_valid: Tensor | None,
    sum_of_neighbours: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a and b scaled so that a_source + b_target is normalised over the edges.

    And the means of both over the edges, (2, width), and the biased variance of their sum: from
    sums at the atoms, centred first, E[a'^2] + E[b'^2] + 2 E[a' b'].
    """
    num_edges, degree = index.shape[1], row_ptr.diff().to(a.dtype)
    valid = None if num_valid is None else _is_valid(len(a), num_valid)
    if valid is not None:
        degree = torch.where(valid, degree, 0)
        num_edges = degree.sum()
    # Of a matrix and a vector: as `degree @ a` cuBLAS may take TF32, which rounds statistics.
    means = torch.stack([a.t().mv(degree), b.t().mv(degree)]) / num_edges
    of_a, of_b = a - means[0], b - means[1]
    near = sum_of_neighbours(of_a)
    if valid is not None:
        near = torch.where(valid.unsqueeze(1), near, 0)
    squares = (of_a.square() + of_b.square()).t().mv(degree)
    # Rounding may leave a variance of zero a little below it.
    variance = ((squares + 2 * (near * of_b).sum(0)) / num_edges).clamp(min=0)
    return (*_scaled(a, b, weight, bias, eps, means.sum(0), variance), means, variance)


def _scaled(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    scale = weight * torch.rsqrt(variance + eps)
    return a * scale, torch.addcmul(bias - mean * scale, b, scale)


def _edge_norm_reference(a, b, weight, bias, eps, index, row_ptr):
    def near(x: Tensor) -> Tensor:
        return SumOverEdges.apply(x, index)

    return _normalised_over_edges(a, b, weight, bias, eps, index, row_ptr, None, near)[:2]


def _edge_norm_gradient(needed, of_a, of_b, a, b, weight, bias, *rest):
    of_a, of_b = (torch.zeros_like(a) if g is None else g for g in (of_a, of_b))
    return _edge_norm_grad(of_a, of_b, a, b, weight, *rest)


def _edge_norm_cpp(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float, index: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a and b normalised, their means over the edges and the biased variance of the sum."""
    (atoms, width), parts = a.shape, a.new_empty(PARTS, 2, a.shape[1])
    normed_a, normed_b, variance = map(torch.empty_like, (a, b, weight))
    means = a.new_empty(2, width)
    given = (a, b, weight, bias, row_ptr, index, atoms, width, eps, parts, PARTS)
    call("edge_norm", *given, means, variance, normed_a, normed_b)
    return normed_a, normed_b, means, variance


def _edge_norm_grad_cpp(
    of_a: Tensor, of_b: Tensor, a: Tensor, b: Tensor, weight: Tensor, eps: float, index: Tensor,
    row_ptr: Tensor, means: Tensor, variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of a, b, weight and bias."""
    ga, gb, g_weight, g_bias = map(torch.empty_like, (a, b, weight, weight))
    sums, parts = a.new_empty(2, a.shape[1]), a.new_empty(PARTS, 2, a.shape[1])
    given = (of_a, of_b, a, b, weight, row_ptr, index, *a.shape, eps, means, variance)
    call("edge_norm_grad", *given, parts, PARTS, sums, ga, gb, g_weight, g_bias)
    return ga, gb, g_weight, g_bias


# On GPUs plain torch is used, around the fused `sum_over_edges`.
_edge_norm = dispatch.register(
    "edge_norm",
    _edge_norm_cpp,
    gradient=_edge_norm_gradient,
    reference=_edge_norm_reference,
    results=2,
)
_edge_norm_grad = dispatch.register(
    "edge_norm_grad", _edge_norm_grad_cpp, gradient=dispatch.no_second_derivative
)
