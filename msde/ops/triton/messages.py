"""Sums of messages over the edges into each atom: see `csrc/messages.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.device import apply_relu, load_row, load_rows, relu_grad


@triton.jit
def sum_over_edges(x, row_ptr, source, out, width, block: tl.constexpr):
    """One atom: the sum of its neighbours' rows."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    total = tl.zeros([block], out.dtype.element_ty)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        total += load_row(x, tl.load(source + e), f, width, block)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def gin_message(x, table, eps, code, row_ptr, source, out, width, block: tl.constexpr):
    """One atom: (1 + eps) x_i + sum of relu(x_j + table[code])."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    total = (1 + tl.load(eps)) * load_row(x, i, f, width, block)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        message = load_row(x, tl.load(source + e), f, width, block)
        message += load_row(table, tl.load(code + e), f, width, block)
        total += apply_relu(message)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def gin_message_grad(g, x, table, eps, code, row_ptr, source, gx, width, block: tl.constexpr):
    """One atom: (1 + eps) g_j + sum_i relu'(x_j + table[code]) g_i."""
    j = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    xj = load_row(x, j, f, width, block)
    total = (1 + tl.load(eps)) * load_row(g, j, f, width, block)
    for e in range(tl.load(row_ptr + j), tl.load(row_ptr + j + 1)):
        received = load_row(g, tl.load(source + e), f, width, block)
        message = xj + load_row(table, tl.load(code + e), f, width, block)
        total += relu_grad(received, message)
    tl.store(gx + j * width + f, total, mask=f < width)


@triton.jit
def gin_table_grad(g, x, table, order, code_ptr, source, target, parts, width,
                   num_parts: tl.constexpr, tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One part of the bonds of one code: sum of relu'(x_j + table[code]) g_i."""
    c = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first = tl.load(code_ptr + c)
    count = tl.load(code_ptr + c + 1) - first
    bond = load_row(table, c, f, width, block)
    total = tl.zeros([tile, block], parts.dtype.element_ty)
    last = first + (part + 1) * count // num_parts
    for start in range(first + part * count // num_parts, last, tile):
        s = start + tl.arange(0, tile)
        e = tl.load(order + s, mask=s < last, other=0)
        message = load_rows(x, tl.load(source + e), f, width, s < last) + bond[None, :]
        received = load_rows(g, tl.load(target + e), f, width, s < last)
        total += relu_grad(received, message)
    at = (c * num_parts + part) * width + f
    tl.store(parts + at, tl.sum(total, axis=0), mask=f < width)
