"""Cubic interpolation in a table of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msde.ops.groups import sort_groups


class Interpolation:
    """Cubic Lagrange interpolation in a table of rows at equally spaced points.

    Holds which four rows each point takes with which weights, and the points sorted by the first of
    these, so that both directions are sums over bags of rows.
    """

    def __init__(self, position: Tensor, keep: Tensor, num_rows: int) -> None:
        """Prepare interpolation at `position`, (num_points,), in units of the spacing.

        Position p lies between the rows floor(p) + 1 and floor(p) + 2: the first row stands at -1.
        Where `keep`, (num_points,), is false the result is zero.
        """
        # What is not a number must not become a row; its weights stay what they are.
        first = position.nan_to_num().floor().clamp(0, num_rows - 4)  # (num_points,)
        s = position - first  # (num_points,) in [0, 1]
        weights = (
            -s * (s - 1) * (s - 2) / 6,
            (s + 1) * (s - 1) * (s - 2) / 2,
            -(s + 1) * s * (s - 2) / 2,
            (s + 1) * s * (s - 1) / 6,
        )
        self.weight = torch.stack(weights, dim=-1) * keep.unsqueeze(-1)  # (num_points, 4)
        self.first = first.long()  # (num_points,) the first of the four rows
        # Where the points of each first row start, (num_rows - 2,), and the points in that order.
        self.cell_ptr, self.order = sort_groups(self.first, num_rows - 3)

    def __call__(self, table: Tensor) -> Tensor:
        """Interpolate in `table`, (num_rows, width): (num_points, width)."""
        return _Interpolate.apply(table, self)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Interpolation) -> Tensor:
        ctx.at = at
        row = at.first.unsqueeze(-1) + torch.arange(4, device=table.device)  # (num_points, 4)
        return nn.functional.embedding_bag(
            row, table, per_sample_weights=at.weight.to(table.dtype), mode="sum"
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        at, grad = ctx.at, grad.contiguous()
        weight = at.weight.to(grad.dtype).index_select(0, at.order)  # (num_points, 4)
        cells = len(at.cell_ptr) - 1
        grad_table = grad.new_zeros(cells + 3, grad.shape[1])
        for q in range(4):
            grad_table[q : q + cells] += nn.functional.embedding_bag(
                at.order,
                grad,
                at.cell_ptr[:-1],
                per_sample_weights=weight[:, q].contiguous(),
                mode="sum",
            )
        return grad_table, None
