"""The ops in plain torch: any device, any floating dtype, any order of derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    exponentials = torch.exp(logits - top[segment])
    total = segment_sum(exponentials, segment, num_segments)
    return exponentials / total[segment]


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
        out.index_add_(0, i, x[j].mul_(weight))
        out.index_add_(0, j, x[i].mul_(weight))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight, pair_index = ctx.saved_tensors
        i, j = pair_index
        grad_x = _FilterConv.apply(grad, weight, pair_index) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.addcmul(x[i] * grad[j], x[j], grad[i])
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
