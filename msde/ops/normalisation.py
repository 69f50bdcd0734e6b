"""Normalisation over rows or edges, in plain torch: any dtype, any order of derivatives.

With `counted`, a tensor, only so many first rows or atoms have a part in the statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msde.ops.groups import Edges
from msde.ops.reference import sum_over_edges


def normalised_over_rows(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, counted: Tensor | None = None
) -> Tensor:
    """Return x, (rows, width), with each column normalised by its own mean and variance."""
    if counted is not None:
        return normalised_over_first_rows(x, weight, bias, relu, eps, counted)[0]
    y = nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return torch.relu(y) if relu else y


def made_again() -> bool:
    """Say whether this is a forward pass that a backward one makes again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _counts(rows: int, counted: Tensor) -> Tensor:
    """Return which of some rows are among the first, that count, (rows,)."""
    return torch.arange(rows, device=counted.device) < counted


def normalised_over_first_rows(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, eps: float, counted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalised by the mean and the biased variance of its first rows, and both."""
    counts = _counts(len(x), counted).unsqueeze(1)
    wide = x.to(weight.dtype)  # sums of many rows
    mean = torch.where(counts, wide, 0).sum(0) / counted
    centred = wide - mean
    variance = torch.where(counts, centred, 0).square().sum(0) / counted
    y = torch.addcmul(bias, centred, weight * torch.rsqrt(variance + eps)).to(x.dtype)
    return torch.relu(y) if relu else y, mean, variance


def batch_norm(
    x: Tensor, norm: nn.BatchNorm1d, relu: bool = False, counted: Tensor | None = None
) -> Tensor:
    """See `msde.ops.batch_norm`."""
    if norm.training and counted is not None:
        affine = norm.weight, norm.bias
        y, mean, variance = normalised_over_first_rows(x, *affine, relu, norm.eps, counted)
        update_statistics(norm, mean, variance, counted)
        return y
    statistics = norm.running_mean, norm.running_var
    of_batch = norm.training and len(x) > 1
    if of_batch and made_again():
        statistics = tuple(map(torch.clone, statistics))  # not to be taken in twice
    elif of_batch:
        norm.num_batches_tracked += 1
    y = nn.functional.batch_norm(
        x, *statistics, norm.weight, norm.bias, of_batch, norm.momentum, norm.eps
    )
    return torch.relu(y) if relu else y


@torch.no_grad()
def update_statistics(
    norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, rows: int | Tensor
) -> None:
    """Take the mean and the biased variance of some rows into the running statistics, once."""
    if made_again():
        return
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
    norm.num_batches_tracked += 1


def normalised_over_edges(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    index: Tensor,
    row_ptr: Tensor,
    sum_of_neighbours: Callable[[Tensor], Tensor] | None = None,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a and b so scaled that a_source + b_target is normalised over the edges.

    And the means of both over the edges, (2, width), and the biased variance of their sum: from
    sums at the atoms, centred first, E[a'^2] + E[b'^2] + 2 E[a' b'].
    """
    num_edges, degree = index.shape[1], row_ptr.diff().to(a.dtype)
    counts = None if counted is None else _counts(len(a), counted)
    if counts is not None:
        degree = torch.where(counts, degree, 0)
        num_edges = degree.sum()
    means = torch.stack([degree @ a, degree @ b]) / num_edges
    of_a, of_b = a - means[0], b - means[1]
    near = sum_of_neighbours(of_a) if sum_of_neighbours else sum_over_edges(of_a, index)
    if counts is not None:
        near = torch.where(counts.unsqueeze(1), near, 0)
    squares = degree @ (of_a.square() + of_b.square())
    # Rounding may leave a variance of zero a little below it.
    variance = ((squares + 2 * (near * of_b).sum(0)) / num_edges).clamp(min=0)
    return (*_scaled(a, b, weight, bias, eps, means.sum(0), variance), means, variance)


def _scaled(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    scale = weight * torch.rsqrt(variance + eps)
    return a * scale, torch.addcmul(bias - mean * scale, b, scale)


def edge_norm(
    a: Tensor,
    b: Tensor,
    norm: nn.BatchNorm1d,
    edges: Edges,
    normalised: Callable[..., tuple[Tensor, ...]] = normalised_over_edges,
) -> tuple[Tensor, Tensor]:
    """See `msde.ops.edge_norm`; `normalised` does what `normalised_over_edges` does."""
    affine, num_edges = (norm.weight, norm.bias, norm.eps), edges.index.shape[1]
    if not (norm.training and num_edges > 1):
        return _scaled(a, b, *affine, norm.running_mean, norm.running_var)
    a, b, means, variance = normalised(a, b, *affine, edges.index, edges.row_ptr)
    rows: int | Tensor = num_edges
    if edges.counted is not None:  # not by edges.row_ptr[...], for which a GPU's host waits
        rows = edges.row_ptr.index_select(0, edges.counted.view(1))
    update_statistics(norm, means.sum(0), variance, rows)
    return a, b
