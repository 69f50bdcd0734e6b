"""Convolutions over pairs of atoms with filters that may be interpolated in a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msde.ops import dispatch, triton
from msde.ops.cpp import call
from msde.ops.graphs import Pairs, sort_groups


class Interpolation:
    """Cubic Lagrange interpolation in a table of rows at equally spaced points.

    Holds the four rows and weights of each point, and the points sorted by their first row, so that
    both directions are sums over bags of rows.
    """

    def __init__(self, position: Tensor, keep: Tensor, num_rows: int) -> None:
        """Prepare interpolation at `position`, (num_points,), in units of the spacing.

        Position p lies between the rows floor(p) + 1 and floor(p) + 2: the first row stands at -1.
        Where `keep`, (num_points,), is false the result is zero.
        """
        # NaN must not become a row; the weights of such a point stay NaN.
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


class _FilterConv(torch.autograd.Function):
    """y_i = sum_j W_ij x_j over unordered pairs: linear in x and W, self-adjoint in x.

    Written out because autograd would keep two more edge-sized tensors and make two more passes;
    its backward is made of the same differentiable pieces, so forces can be trained.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pair_index: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, pair_index)
        i, j = pair_index
        # Not in place: torch 2.11's compiler loses the gradient of a result that is written to.
        out = torch.zeros_like(x).index_add(0, i, x.index_select(0, j).mul_(weight))
        return out.index_add(0, j, x.index_select(0, i).mul_(weight))

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

    This is the continuous-filter convolution of SchNet (Schuett et al. 2017), with one filter for
    each unordered pair.

    Args:
        x: (num_atoms, num_filters).
        weight: (num_pairs, num_filters), of the dtype of x.
        pair_index: (2, num_pairs), every unordered pair once.
    """
    return _FilterConv.apply(x, weight, pair_index)


def interpolated_conv(x: Tensor, table: Tensor, at: Interpolation, pairs: Pairs) -> Tensor:
    """Return `filter_conv(x, at(table), pairs.index)` without making the filters of all pairs.

    Args:
        x: (num_atoms, num_filters).
        table: (num_rows, num_filters), of the dtype of x.
        at: the place of each pair's filter between the rows of the table.
    """
    if dispatch.backend(x, table, at.weight, under_autocast=True) != "torch":
        knots = (at.first, at.weight, at.order, at.cell_ptr)
        return _interpolated_conv(x, table, *knots, *pairs.tensors)
    return filter_conv(x, at(table).to(x.dtype), pairs.index)


# Both operators are bilinear: their gradients are made of one another.
def _gradient(needed, g, x, table, *where):
    # Symmetric filters: the convolution is its own transpose.
    gx = _interpolated_conv(g, table, *where) if needed[0] else None
    return gx, _interpolated_table_grad(x, g, *where) if needed[1] else None


def _table_grad_gradient(needed, of_table, x, g, *where):
    return [_interpolated_conv(rows, of_table, *where) for rows in (g, x)]


def _cpp(
    x: Tensor, table: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    out, molecules = torch.empty_like(x), ptr.shape[0] - 1
    where = (first, weight, index, ptr, pair_ptr, molecules)
    call("interpolated_conv", x, table, *where, out, x.shape[1])
    return out


def _triton(x, table, first, weight, order, cell_ptr, index, ptr, pair_ptr, graph):
    (atoms, width), out = x.shape, torch.empty_like(x)
    triton.kernels("filters").interpolated_conv[(atoms,)](
        x, table, first, weight, graph, ptr, pair_ptr, out, width, triton.power_of_2(width)
    )
    return out


def _table_grad_cpp(
    x: Tensor, g: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient of the table, (num_rows, width)."""
    cells, width = cell_ptr.shape[0] - 1, x.shape[1]
    parts, out = x.new_empty(cells, 4, width), x.new_empty(cells + 3, width)
    where = (weight, index, index.shape[1], order, cell_ptr)
    call("interpolated_table_grad", x, g, *where, parts, out, cells, width)
    return out


def _table_grad_triton(x, g, first, weight, order, cell_ptr, index, ptr, pair_ptr, graph):
    cells, width = len(cell_ptr) - 1, x.shape[1]
    parts = x.new_empty(4, cells, width)  # from the first to the fourth row of each cell
    out = x.new_empty(cells + 3, width)
    block = triton.power_of_2(width)
    sizes = (index.shape[1], width, triton.rows_at_once(block), block)
    kernels = triton.kernels("filters")
    # Four sums of 4,096 numbers, beside what is added, do not fit into the registers of four warps.
    num_warps = max(4, block // 512)
    kernels.interpolated_table_grad[(cells,)](
        x, g, weight, index, order, cell_ptr, parts, *sizes, num_warps=num_warps
    )
    kernels.interpolated_table_sums[(cells + 3,)](parts, out, width, block)
    return out


_interpolated_conv = dispatch.register("interpolated_conv", _cpp, _triton, gradient=_gradient)
_interpolated_table_grad = dispatch.register(
    "interpolated_table_grad", _table_grad_cpp, _table_grad_triton, gradient=_table_grad_gradient
)
