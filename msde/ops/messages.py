"""Sums of messages over the directed edges into each atom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msde.ops import dispatch, triton
from msde.ops.cpp import PARTS, call
from msde.ops.graphs import EdgeCodes, Edges, edge_chunks
from msde.ops.segments import segment_sum, sum_consecutive

ATOMS_AT_ONCE = 1024  # numbers of one each, that a Triton program adds up


def sum_over_edges(x: Tensor, edges: Edges) -> Tensor:
    """Return the sum of x, (num_atoms, width), over the neighbours of each atom."""
    if dispatch.backend(x, under_autocast=True) != "torch":
        return _sum_over_edges(x, edges.index, edges.row_ptr)
    return SumOverEdges.apply(x, edges.index)


class SumOverEdges(torch.autograd.Function):
    """`sum_over_edges` in plain torch: linear, and its own transpose with the edges reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        """Sum x, (num_atoms, width), over edge_index, (2, num_edges)."""
        ctx.save_for_backward(edge_index)
        out = torch.zeros_like(x)
        # Not in place: torch 2.11's compiler loses the gradient of a result that is written to.
        for _, source, target in edge_chunks(edge_index):
            out = out.index_add(0, target, x.index_select(0, source))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Sum the gradient over the reversed edges."""
        (edge_index,) = ctx.saved_tensors
        return SumOverEdges.apply(grads[0], edge_index.flip(0)), None


def _sum_over_edges_gradient(needed, g, x, *edges):
    return (_sum_over_edges(g, *edges),)  # each edge has its reverse: its own transpose


def _sum_over_edges_cpp(x: Tensor, index: Tensor, row_ptr: Tensor) -> Tensor:
    out = torch.empty_like(x)
    call("sum_over_edges", x, row_ptr, index, row_ptr.shape[0] - 1, out, x.shape[1])
    return out


def _sum_over_edges_triton(x, index, row_ptr):
    (atoms, width), out = x.shape, torch.empty_like(x)
    kernel = triton.kernels("messages").sum_over_edges
    kernel[(atoms,)](x, row_ptr, index, out, width, triton.power_of_2(width))
    return out


_sum_over_edges = dispatch.register(
    "sum_over_edges", _sum_over_edges_cpp, _sum_over_edges_triton, gradient=_sum_over_edges_gradient
)


def edge_sums(x: Tensor, row_ptr: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of x, (num_edges, width), over the edges out of each atom and into it.

    Both are (num_atoms, width). For GPUs; without second derivatives.

    Args:
        row_ptr, reverse: of the edges, see `Edges`.
    """
    sums = _edge_sums if dispatch.backend(x, under_autocast=True) == "triton" else _edge_sums_torch
    return sums(x, row_ptr, reverse)


def _edge_sums_torch(x: Tensor, row_ptr: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
    return sum_consecutive(x.index_select(0, reverse), row_ptr), sum_consecutive(x, row_ptr)


def _edge_sums_triton(x, row_ptr, reverse):
    atoms, width = len(row_ptr) - 1, x.shape[1]
    out_of, into = x.new_empty(atoms, width), x.new_empty(atoms, width)
    kernel = triton.kernels("messages").edge_sums
    kernel[(atoms,)](x, row_ptr, reverse, out_of, into, width, triton.power_of_2(width))
    return out_of, into


_edge_sums = dispatch.register("edge_sums", _edge_sums_torch, _edge_sums_triton)


def gin_message(x: Tensor, table: Tensor, eps: Tensor, codes: EdgeCodes, edges: Edges) -> Tensor:
    """Return y_i = (1 + eps) x_i + sum over edges j -> i of relu(x_j + table[code]).

    Args:
        x: (num_atoms, width), like the result.
        table: (codes, width) one row for each kind of bond.
        eps: (1,).
        codes: the row of each edge.
    """
    if dispatch.backend(x, table, eps, under_autocast=True) != "torch":
        kinds = (codes.code, codes.ptr, codes.order)
        return _gin_message(x, table, eps, *kinds, edges.index, edges.row_ptr)
    source, target = edges.index
    bonds = table.index_select(0, codes.code)  # (num_edges, width)
    message = torch.relu(x.index_select(0, source) + bonds)  # (num_edges, width)
    return (1 + eps) * x + segment_sum(message, target, len(x))


def _gin_message_gradient(needed, g, *inputs):
    return _gin_message_grad(g, *inputs)


def _gin_message_cpp(
    x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor, code_order: Tensor,
    index: Tensor, row_ptr: Tensor,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(x)
    sizes = (row_ptr.shape[0] - 1, code, out, x.shape[1])
    call("gin_message", x, table, eps, row_ptr, index, *sizes)
    return out


def _gin_message_triton(x, table, eps, code, code_ptr, code_order, index, row_ptr):
    (atoms, width), out = x.shape, torch.empty_like(x)
    kernel = triton.kernels("messages").gin_message
    kernel[(atoms,)](x, table, eps, code, row_ptr, index, out, width, triton.power_of_2(width))
    return out


def _gin_message_grad_cpp(
    g: Tensor, x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor,
    code_order: Tensor, index: Tensor, row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    codes, width = table.shape
    gx, g_table, g_eps = map(torch.empty_like, (x, table, eps))
    parts = x.new_empty(PARTS, codes * width + 1)
    call(
        "gin_message_grad", g, x, table, eps, row_ptr, index, row_ptr.shape[0] - 1, code, gx, parts,
        PARTS, g_table, g_eps, codes, width,
    )  # fmt: skip
    return gx, g_table, g_eps


def _gin_message_grad_triton(g, x, table, eps, code, code_ptr, code_order, index, row_ptr):
    (atoms, width), codes, gx = x.shape, len(table), torch.empty_like(x)
    kernels, block = triton.kernels("messages"), triton.power_of_2(width)
    g_table, g_eps = torch.empty_like(table), torch.empty_like(eps)
    parts, dots = x.new_empty(codes, triton.PARTS, width), x.new_empty(atoms)
    kernels.gin_message_grad[(atoms + codes * triton.PARTS,)](
        g, x, table, eps, code, code_order, code_ptr, row_ptr, *index, gx, dots, parts, atoms,
        width, triton.PARTS, triton.rows_at_once(block), block,
    )  # fmt: skip
    kernels.gin_grad_sums[(codes + 1, triton.cdiv(width, triton.BLOCK))](
        parts, dots, g_table, g_eps, codes, atoms, width, triton.PARTS, ATOMS_AT_ONCE, triton.BLOCK
    )
    return gx, g_table, g_eps


_gin_message = dispatch.register(
    "gin_message", _gin_message_cpp, _gin_message_triton, gradient=_gin_message_gradient
)
_gin_message_grad = dispatch.register(
    "gin_message_grad",
    _gin_message_grad_cpp,
    _gin_message_grad_triton,
    gradient=dispatch.no_second_derivative,
)
