"""The ops in plain torch: any device, any floating dtype, any order of derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def segment_sum(rows: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of each segment, (num_segments, ...); an empty segment gives zero."""
    out = rows.new_zeros(num_segments, *rows.shape[1:])
    return out.index_add_(0, segment, rows)


def segment_mean(rows: Tensor, segment: Tensor, counts: Tensor) -> Tensor:
    """Average the rows of each segment; an empty segment gives zero.

    Args:
        counts: (num_segments,) number of rows of each segment.
    """
    total = segment_sum(rows, segment, len(counts))
    return total / counts.clamp(min=1).view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype)


def segment_softmax(logits: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Normalise exp(logits) to sum to one in each segment, column by column.

    Args:
        logits: (rows, columns).
        segment: (rows,) segment of each row.
    """
    index = segment.unsqueeze(-1).expand_as(logits)
    # Subtracting the maximum changes nothing but the range, so no gradient is owed to it.
    top = logits.new_full((num_segments, logits.shape[1]), float("-inf"))
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    exponentials = torch.exp(logits - top.index_select(0, segment))
    total = segment_sum(exponentials, segment, num_segments)
    return exponentials / total.index_select(0, segment)


class _FilterConv(torch.autograd.Function):
    """y_i = sum_j W_ij x_j over unordered pairs: linear in x and W, self-adjoint in x.

    Written out because autograd would keep two more edge-sized tensors and make two more passes;
    its backward is made of the same differentiable pieces, so forces can be trained.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pair_index: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, pair_index)
        i, j = pair_index
        out = torch.zeros_like(x)
        out.index_add_(0, i, x.index_select(0, j).mul_(weight))
        out.index_add_(0, j, x.index_select(0, i).mul_(weight))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight, pair_index = ctx.saved_tensors
        i, j = pair_index
        grad_x = _FilterConv.apply(grad, weight, pair_index) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            both = (x, grad)
            x_i, grad_i = (rows.index_select(0, i) for rows in both)
            x_j, grad_j = (rows.index_select(0, j) for rows in both)
            grad_weight = torch.addcmul(x_i * grad_j, x_j, grad_i)
        return grad_x, grad_weight, None


def filter_conv(x: Tensor, weight: Tensor, pair_index: Tensor) -> Tensor:
    """Return y_i = sum over pairs (i, j) of weight_ij * x_j, each pair counting both ways.

    The continuous-filter convolution of SchNet (Schuett et al. 2017) with the filter computed once
    for an unordered pair.

    Args:
        x: (num_atoms, num_filters).
        weight: (num_pairs, num_filters), of the dtype of x.
        pair_index: (2, num_pairs), every unordered pair once.
    """
    return _FilterConv.apply(x, weight, pair_index)


CHUNK_ROWS = 2048  # edges handled together on a CPU, so that they stay in cache


def _edge_chunks(edge_index: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Cut the edges into (rows, sources, targets); a GPU takes them all at once."""
    num_edges = edge_index.shape[1]
    rows = CHUNK_ROWS if edge_index.device.type == "cpu" else max(1, num_edges)
    return [
        (slice(first, first + rows), *edge_index[:, first : first + rows])
        for first in range(0, num_edges, rows)
    ]


class _EdgeNormProject(torch.autograd.Function):
    """Linear(relu(gamma (a_s + b_t - mean) rstd + beta)) over edges s -> t.

    Nothing of the size (num_edges, width) is kept: the backward pass makes it again, chunk by
    chunk. `batch_statistics` says whether mean and rstd are functions of a and b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        edge_index: Tensor,
        batch_statistics: bool,
    ) -> Tensor:
        ctx.save_for_backward(a, b, gamma, beta, weight, mean, rstd, edge_index)
        ctx.batch_statistics = batch_statistics
        scale = gamma * rstd
        # The affine map of the norm is made at the atoms: one addition is left at an edge.
        a, b = a * scale, torch.addcmul(beta - mean * scale, b, scale)
        out = a.new_empty(edge_index.shape[1], len(bias))
        for rows, source, target in _edge_chunks(edge_index):
            y = a.index_select(0, source).add_(b.index_select(0, target)).relu_()
            torch.addmm(bias, y, weight.t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, gamma, beta, weight, mean, rstd, edge_index = ctx.saved_tensors
        scale = gamma * rstd
        a_scaled, b_scaled = a * scale, torch.addcmul(beta - mean * scale, b, scale)
        grad_a, grad_b, grad_weight = map(torch.zeros_like, (a, b, weight))
        grad = grad.contiguous()
        for rows, source, target in _edge_chunks(edge_index):
            y = a_scaled.index_select(0, source).add_(b_scaled.index_select(0, target))
            grad_y = torch.mm(grad[rows], weight)
            grad_y.masked_fill_(y <= 0, 0)
            grad_weight.addmm_(grad[rows].t(), y.relu())
            grad_a.index_add_(0, source, grad_y)
            grad_b.index_add_(0, target, grad_y)
        # Let y be the norm's output and z its normalised input. With dL/dy summed at the atoms, all
        # other sums over edges are sums over atoms.
        sum_y = grad_a.sum(0)
        sum_y_z = ((grad_a * (a - mean)).sum(0) + (grad_b * b).sum(0)) * rstd
        grad_a, grad_b = grad_a * scale, grad_b * scale
        if ctx.batch_statistics:
            num_edges = edge_index.shape[1]
            for own, other, grad_own, (here, there) in (
                (a, b, grad_a, edge_index),
                (b, a, grad_b, edge_index.flip(0)),
            ):
                degree = torch.bincount(here, minlength=len(own)).to(own.dtype).unsqueeze(-1)
                z = (degree * (own - mean) + sum_over_edges(other, there, here)) * rstd
                grad_own -= scale / num_edges * (degree * sum_y + z * sum_y_z)
        return grad_a, grad_b, sum_y_z, sum_y, grad_weight, grad.sum(0), None, None, None, None


def sum_over_edges(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return the sum of x over the sources of each target's edges, like x."""
    out = torch.zeros_like(x)
    for _, s, t in _edge_chunks(torch.stack([source, target])):
        out.index_add_(0, t, x.index_select(0, s))
    return out


def edge_statistics(a: Tensor, b: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of a_s + b_t over the edges s -> t, each (width,).

    From sums at the atoms, centred first: var = E[a'^2] + E[b'^2] + 2 E[a' b'].
    """
    source, target = edge_index
    num_edges = edge_index.shape[1]
    out_degree = torch.bincount(source, minlength=len(a)).to(a.dtype)
    in_degree = torch.bincount(target, minlength=len(b)).to(b.dtype)
    mean_a, mean_b = out_degree @ a / num_edges, in_degree @ b / num_edges
    a, b = a - mean_a, b - mean_b
    squares = out_degree @ a.square() + in_degree @ b.square()
    products = (sum_over_edges(a, source, target) * b).sum(0)
    return mean_a + mean_b, (squares + 2 * products) / num_edges


def edge_norm_project(
    a: Tensor, b: Tensor, norm: nn.BatchNorm1d, project: nn.Linear, edge_index: Tensor
) -> Tensor:
    """Return project(relu(norm(a_source + b_target))) for each edge, (num_edges, outputs).

    The norm's running statistics are updated as BatchNorm1d does. With fewer than two edges there
    are no statistics of the batch, and the running ones are used.

    Args:
        a, b: (num_atoms, width) what the source and the target contribute.
    """
    num_edges = edge_index.shape[1]
    batch_statistics = norm.training and num_edges > 1
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(norm.weight.dtype), b.to(norm.weight.dtype)
        if batch_statistics:
            with torch.no_grad():
                mean, variance = edge_statistics(a, b, edge_index)
                unbiased = variance * (num_edges / (num_edges - 1))
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(unbiased, norm.momentum)
                norm.num_batches_tracked += 1
        else:
            mean, variance = norm.running_mean, norm.running_var
        rstd = torch.rsqrt(variance + norm.eps)
        return _EdgeNormProject.apply(
            a,
            b,
            norm.weight,
            norm.bias,
            project.weight,
            project.bias,
            mean,
            rstd,
            edge_index,
            batch_statistics,
        )
