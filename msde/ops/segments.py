"""Sums, means and softmax over segments of rows, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(rows: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of each segment, (num_segments, ...); an empty segment gives zero."""
    out = rows.new_zeros(num_segments, *rows.shape[1:])
    return out.index_add_(0, segment, rows)


def sum_consecutive(rows: Tensor, ptr: Tensor) -> Tensor:
    """Sum rows ptr[i] to ptr[i + 1] - 1 for each i, in their order on every device."""
    # Unsafe: the offsets are not looked at, for which the host would wait.
    return torch.segment_reduce(rows, "sum", offsets=ptr, unsafe=True)


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
