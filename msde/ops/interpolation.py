"""Cubic interpolation in a table of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msde.ops.groups import sort_groups


class Interpolation:
    """Cubic Lagrange interpolation in a table of rows at equally spaced points.

    Holds which four rows each point takes with which weights, and the transpose of that, so that
    both directions are sums over bags of rows.
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
        self.num_rows = num_rows
        self._sorted: tuple[Tensor, Tensor] | None = None

    @cached_property
    def row(self) -> Tensor:
        """The four rows of each point, (num_points, 4)."""
        return self.first.unsqueeze(-1) + torch.arange(4, device=self.first.device)

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The points of each row: points and weights, (num_points * 4,), and offsets."""
        ptr, order = sort_groups(self.row.flatten(), self.num_rows)
        return order // 4, self.weight.flatten()[order], ptr[:-1]

    def sorted(self, sort: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the points in the order of their first row, and where each row's points start.

        Args:
            sort: `sort_groups`, or what does the same.
        """
        if self._sorted is None:
            ptr, order = sort(self.first, self.num_rows - 3)
            self._sorted = order, ptr
        return self._sorted

    def __call__(self, table: Tensor) -> Tensor:
        """Interpolate in `table`, (num_rows, width): (num_points, width)."""
        return _Interpolate.apply(table, self)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Interpolation) -> Tensor:
        ctx.at = at
        return nn.functional.embedding_bag(
            at.row, table, per_sample_weights=at.weight.to(table.dtype), mode="sum"
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        points, weights, offsets = ctx.at.transposed
        grad_table = nn.functional.embedding_bag(
            points,
            grad.contiguous(),
            offsets,
            per_sample_weights=weights.to(grad.dtype),
            mode="sum",
        )
        return grad_table, None
