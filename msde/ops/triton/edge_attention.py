"""Attention of each atom over the edges into it: see `csrc/edge_attention.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _head(pointer, row, h, f, heads: tl.constexpr, dim: tl.constexpr):
    return tl.load(pointer + (row * heads + h) * dim + f, mask=f < dim, other=0)


@triton.jit
def edge_attention(q, k, v, edge, keep, row_ptr, source, alpha, out, scale: tl.constexpr,
                   has_keep: tl.constexpr, heads: tl.constexpr, dim: tl.constexpr,
                   block: tl.constexpr):  # fmt: skip
    """One atom and head: softmax over the edges into it, the maximum taken first."""
    i = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    qi = _head(q, i, h, f, heads, dim) * scale
    top = tl.sum(qi, axis=0) * 0 - float("inf")
    for e in range(first, last):
        ke = _head(k, tl.load(source + e), h, f, heads, dim) + _head(edge, e, h, f, heads, dim)
        top = tl.maximum(top, tl.sum(qi * ke, axis=0))
    total = tl.sum(qi, axis=0) * 0
    value = tl.zeros([block], out.dtype.element_ty)
    for e in range(first, last):
        ke = _head(k, tl.load(source + e), h, f, heads, dim) + _head(edge, e, h, f, heads, dim)
        total += tl.exp(tl.sum(qi * ke, axis=0) - top)
    for e in range(first, last):
        j = tl.load(source + e)
        be = _head(edge, e, h, f, heads, dim)
        weight = tl.exp(tl.sum(qi * (_head(k, j, h, f, heads, dim) + be), axis=0) - top) / total
        tl.store(alpha + e * heads + h, weight)
        if has_keep:
            weight *= tl.load(keep + e * heads + h)
        value += weight * (_head(v, j, h, f, heads, dim) + be)
    tl.store(out + (i * heads + h) * dim + f, value, f < dim)


@triton.jit
def edge_attention_grad(gy, q, k, v, edge, keep, alpha, row_ptr, source, gq, ge, slopes,
                        scale: tl.constexpr, has_keep: tl.constexpr, heads: tl.constexpr,
                        dim: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One atom and head: the gradients of its query and of the edges into it, and the slopes."""
    i = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    gi, qi = _head(gy, i, h, f, heads, dim), _head(q, i, h, f, heads, dim)
    mean = tl.sum(gi, axis=0) * 0
    for e in range(first, last):
        ve = _head(v, tl.load(source + e), h, f, heads, dim) + _head(edge, e, h, f, heads, dim)
        u = tl.sum(gi * ve, axis=0) * tl.load(alpha + e * heads + h)
        if has_keep:
            u *= tl.load(keep + e * heads + h)
        mean += u
    of_q = tl.zeros([block], gq.dtype.element_ty)
    for e in range(first, last):
        j = tl.load(source + e)
        be = _head(edge, e, h, f, heads, dim)
        weight = tl.load(alpha + e * heads + h)
        u = tl.sum(gi * (_head(v, j, h, f, heads, dim) + be), axis=0)
        kept = weight
        if has_keep:
            u *= tl.load(keep + e * heads + h)
            kept *= tl.load(keep + e * heads + h)
        slope = weight * (u - mean) * scale
        of_q += slope * (_head(k, j, h, f, heads, dim) + be)
        tl.store(ge + (e * heads + h) * dim + f, slope * qi + kept * gi, f < dim)
        tl.store(slopes + e * heads + h, slope)
    tl.store(gq + (i * heads + h) * dim + f, of_q, f < dim)


@triton.jit
def edge_attention_source_grad(gy, q, keep, alpha, slopes, row_ptr, source, reverse, gk, gv,
                               has_keep: tl.constexpr, heads: tl.constexpr,
                               dim: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One atom and head: the gradients of its key and value, over the edges out of it."""
    j = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    of_k, of_v = tl.zeros([block], gk.dtype.element_ty), tl.zeros([block], gk.dtype.element_ty)
    for e in range(tl.load(row_ptr + j), tl.load(row_ptr + j + 1)):
        i, out = tl.load(source + e), tl.load(reverse + e)
        kept = tl.load(alpha + out * heads + h)
        if has_keep:
            kept *= tl.load(keep + out * heads + h)
        of_k += tl.load(slopes + out * heads + h) * _head(q, i, h, f, heads, dim)
        of_v += kept * _head(gy, i, h, f, heads, dim)
    tl.store(gk + (j * heads + h) * dim + f, of_k, f < dim)
    tl.store(gv + (j * heads + h) * dim + f, of_v, f < dim)
