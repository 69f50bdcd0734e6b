"""Attention of each atom over the edges into it: see `csrc/edge_attention.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _at(row, heads: tl.constexpr, dim: tl.constexpr, all_heads: tl.constexpr, block: tl.constexpr):
    """The places of a row's numbers, (heads, dim), and which of them are there."""
    h = tl.arange(0, all_heads)[:, None]
    f = tl.arange(0, block)[None, :]
    return (row * heads + h) * dim + f, (h < heads) & (f < dim)


@triton.jit
def _row(pointer, row, heads: tl.constexpr, dim: tl.constexpr, all_heads: tl.constexpr,
         block: tl.constexpr):  # fmt: skip
    """Load a row, (all_heads, block), with zeros where nothing is."""
    at, there = _at(row, heads, dim, all_heads, block)
    return tl.load(pointer + at, mask=there, other=0)


@triton.jit
def _of_heads(pointer, row, heads: tl.constexpr, all_heads: tl.constexpr):
    """Load a number of each head, (all_heads,)."""
    h = tl.arange(0, all_heads)
    return tl.load(pointer + row * heads + h, mask=h < heads, other=0)


@triton.jit
def edge_attention(q, k, v, edge, keep, row_ptr, source, alpha, out, scale: tl.constexpr,
                   has_keep: tl.constexpr, heads: tl.constexpr, dim: tl.constexpr,
                   all_heads: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One atom: softmax over the edges into it, the maximum taken first."""
    i = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, all_heads)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    qi = _row(q, i, heads, dim, all_heads, block) * scale
    top = tl.sum(qi, axis=1) * 0 - float("inf")
    for e in range(first, last):
        ke = _row(k, tl.load(source + e), heads, dim, all_heads, block)
        ke += _row(edge, e, heads, dim, all_heads, block)
        top = tl.maximum(top, tl.sum(qi * ke, axis=1))
    total = tl.sum(qi, axis=1) * 0
    for e in range(first, last):
        ke = _row(k, tl.load(source + e), heads, dim, all_heads, block)
        ke += _row(edge, e, heads, dim, all_heads, block)
        total += tl.exp(tl.sum(qi * ke, axis=1) - top)
    value = tl.zeros([all_heads, block], out.dtype.element_ty)
    for e in range(first, last):
        j = tl.load(source + e)
        be = _row(edge, e, heads, dim, all_heads, block)
        ke = _row(k, j, heads, dim, all_heads, block) + be
        weight = tl.exp(tl.sum(qi * ke, axis=1) - top) / total
        tl.store(alpha + e * heads + h, weight, mask=h < heads)
        if has_keep:
            weight *= _of_heads(keep, e, heads, all_heads)
        value += weight[:, None] * (_row(v, j, heads, dim, all_heads, block) + be)
    at, there = _at(i, heads, dim, all_heads, block)
    tl.store(out + at, value, mask=there)


@triton.jit
def edge_attention_grad(gy, q, k, v, edge, keep, alpha, row_ptr, source, gq, ge, slopes,
                        scale: tl.constexpr, has_keep: tl.constexpr, heads: tl.constexpr,
                        dim: tl.constexpr, all_heads: tl.constexpr,
                        block: tl.constexpr):  # fmt: skip
    """One atom: the gradients of its query and of the edges into it, and the slopes."""
    i = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, all_heads)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    gi = _row(gy, i, heads, dim, all_heads, block)
    qi = _row(q, i, heads, dim, all_heads, block)
    mean = tl.sum(gi, axis=1) * 0
    for e in range(first, last):
        ve = _row(v, tl.load(source + e), heads, dim, all_heads, block)
        ve += _row(edge, e, heads, dim, all_heads, block)
        u = tl.sum(gi * ve, axis=1) * _of_heads(alpha, e, heads, all_heads)
        if has_keep:
            u *= _of_heads(keep, e, heads, all_heads)
        mean += u
    of_q = tl.zeros([all_heads, block], gq.dtype.element_ty)
    for e in range(first, last):
        j = tl.load(source + e)
        be = _row(edge, e, heads, dim, all_heads, block)
        weight = _of_heads(alpha, e, heads, all_heads)
        u = tl.sum(gi * (_row(v, j, heads, dim, all_heads, block) + be), axis=1)
        kept = weight
        if has_keep:
            u *= _of_heads(keep, e, heads, all_heads)
            kept *= _of_heads(keep, e, heads, all_heads)
        slope = weight * (u - mean) * scale
        of_q += slope[:, None] * (_row(k, j, heads, dim, all_heads, block) + be)
        at, there = _at(e, heads, dim, all_heads, block)
        tl.store(ge + at, slope[:, None] * qi + kept[:, None] * gi, mask=there)
        tl.store(slopes + e * heads + h, slope, mask=h < heads)
    at, there = _at(i, heads, dim, all_heads, block)
    tl.store(gq + at, of_q, mask=there)


@triton.jit
def edge_attention_source_grad(gy, q, keep, alpha, slopes, row_ptr, source, reverse, gk, gv,
                               has_keep: tl.constexpr, heads: tl.constexpr,
                               dim: tl.constexpr, all_heads: tl.constexpr,
                               block: tl.constexpr):  # fmt: skip
    """One atom: the gradients of its key and value, over the edges out of it."""
    j = tl.program_id(0).to(tl.int64)
    of_k = tl.zeros([all_heads, block], gk.dtype.element_ty)
    of_v = tl.zeros([all_heads, block], gv.dtype.element_ty)
    for e in range(tl.load(row_ptr + j), tl.load(row_ptr + j + 1)):
        i, out = tl.load(source + e), tl.load(reverse + e)
        kept = _of_heads(alpha, out, heads, all_heads)
        if has_keep:
            kept *= _of_heads(keep, out, heads, all_heads)
        slope = _of_heads(slopes, out, heads, all_heads)
        of_k += slope[:, None] * _row(q, i, heads, dim, all_heads, block)
        of_v += kept[:, None] * _row(gy, i, heads, dim, all_heads, block)
    at, there = _at(j, heads, dim, all_heads, block)
    tl.store(gk + at, of_k, mask=there)
    tl.store(gv + at, of_v, mask=there)
