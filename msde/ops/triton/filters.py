"""Convolutions with filters interpolated in a table: see `csrc/filters.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.device import load_row, load_rows, molecule_of, pair_number


@triton.jit
def interpolated_conv(x, table, first_row, weight, graph, ptr, pair_ptr, out, width,
                      block: tl.constexpr):  # fmt: skip
    """One atom: y_i = sum_j x_j sum_q weight_q table[first + q]."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    first, last, first_pair = molecule_of(graph, ptr, pair_ptr, i)
    total = tl.zeros([block], out.dtype.element_ty)
    for j in range(first, last):
        if j != i:
            p = pair_number(i, j, first, first_pair, last)
            row = tl.load(first_row + p)
            filters = tl.zeros([block], out.dtype.element_ty)
            for q in range(4):
                filters += tl.load(weight + 4 * p + q) * load_row(table, row + q, f, width, block)
            total += filters * load_row(x, j, f, width, block)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def interpolated_table_grad(x, g, weight, index, order, cell_ptr, parts, num_pairs, width,
                            tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One cell k between knots: its four rows k + q of weight_q (x_i g_j + x_j g_i)."""
    k = tl.program_id(0).to(tl.int64)
    cells = tl.num_programs(0)
    f = tl.arange(0, block)
    q = tl.arange(0, 4)
    total = tl.zeros([4, block], parts.dtype.element_ty)
    last = tl.load(cell_ptr + k + 1)
    for start in range(tl.load(cell_ptr + k), last, tile):
        s = start + tl.arange(0, tile)
        p = tl.load(order + s, mask=s < last, other=0)
        i, j = tl.load(index + p), tl.load(index + num_pairs + p)
        both = load_rows(x, i, f, width, s < last) * load_rows(g, j, f, width, s < last)
        both += load_rows(x, j, f, width, s < last) * load_rows(g, i, f, width, s < last)
        of_knots = tl.load(weight + 4 * p[:, None] + q[None, :])  # (tile, 4)
        total += tl.sum(of_knots[:, :, None] * both[:, None, :], axis=0)
    at = (q * cells + k)[:, None] * width + f[None, :]
    tl.store(parts + at, total, mask=(f < width)[None, :])


@triton.jit
def interpolated_table_sums(parts, out, width, block: tl.constexpr):
    """One row of the table: the sum of what the cells have of it whose first to fourth it is."""
    row = tl.program_id(0).to(tl.int64)
    cells = tl.num_programs(0) - 3
    f = tl.arange(0, block)
    q = tl.arange(0, 4)
    k = row - q
    there = ((k >= 0) & (k < cells))[:, None] & (f < width)[None, :]
    of_cells = tl.load(parts + (q * cells + k)[:, None] * width + f[None, :], mask=there, other=0)
    tl.store(out + row * width + f, tl.sum(of_cells, axis=0), mask=f < width)
