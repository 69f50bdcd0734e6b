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
def edge_sums(x, row_ptr, reverse, out_of, into, width, block: tl.constexpr):
    """One atom: the sums of the rows of the edges out of it and into it."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    of_out = tl.zeros([block], x.dtype.element_ty)
    of_in = tl.zeros([block], x.dtype.element_ty)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        of_out += load_row(x, tl.load(reverse + e), f, width, block)
        of_in += load_row(x, e, f, width, block)
    tl.store(out_of + i * width + f, of_out, mask=f < width)
    tl.store(into + i * width + f, of_in, mask=f < width)


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
def _gin_atom_grad(j, g, x, table, eps, code, row_ptr, source, gx, dots, width,
                   block: tl.constexpr):  # fmt: skip
    """One atom: (1 + eps) g_j + sum_i relu'(x_j + table[code]) g_i, and its part of eps's."""
    f = tl.arange(0, block)
    xj = load_row(x, j, f, width, block)
    gj = load_row(g, j, f, width, block)
    total = (1 + tl.load(eps)) * gj
    for e in range(tl.load(row_ptr + j), tl.load(row_ptr + j + 1)):
        received = load_row(g, tl.load(source + e), f, width, block)
        message = xj + load_row(table, tl.load(code + e), f, width, block)
        total += relu_grad(received, message)
    tl.store(gx + j * width + f, total, mask=f < width)
    tl.store(dots + j, tl.sum(gj * xj))


@triton.jit
def _gin_table_grad(c, part, g, x, table, order, code_ptr, source, target, parts, width,
                    num_parts: tl.constexpr, tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One part of the bonds of one code: sum of relu'(x_j + table[code]) g_i."""
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


@triton.jit
def gin_message_grad(g, x, table, eps, code, order, code_ptr, row_ptr, source, target, gx, dots,
                     parts, atoms, width, num_parts: tl.constexpr, tile: tl.constexpr,
                     block: tl.constexpr):  # fmt: skip
    """One atom or, behind all atoms, one part of the bonds of one code."""
    n = tl.program_id(0).to(tl.int64)
    if n < atoms:
        _gin_atom_grad(n, g, x, table, eps, code, row_ptr, source, gx, dots, width, block)
    else:
        c, part = (n - atoms) // num_parts, (n - atoms) % num_parts
        _gin_table_grad(c, part, g, x, table, order, code_ptr, source, target, parts, width,
                        num_parts, tile, block)  # fmt: skip


@triton.jit
def gin_grad_sums(parts, dots, g_table, g_eps, codes, atoms, width, num_parts: tl.constexpr,
                  tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One code, some columns: the sum of all parts; behind all codes, the gradient of eps."""
    c = tl.program_id(0).to(tl.int64)
    if c < codes:
        f = tl.program_id(1) * block + tl.arange(0, block)
        at = (c * num_parts + tl.arange(0, num_parts))[:, None] * width + f[None, :]
        of_code = tl.load(parts + at, mask=(f < width)[None, :], other=0)
        tl.store(g_table + c * width + f, tl.sum(of_code, axis=0), mask=f < width)
    elif tl.program_id(1) == 0:
        total = tl.zeros([tile], dots.dtype.element_ty)
        for start in range(0, atoms, tile):
            j = start + tl.arange(0, tile)
            total += tl.load(dots + j, mask=j < atoms, other=0)
        tl.store(g_eps, tl.sum(total))
