"""The ops' kernels for GPUs, in Triton.

One program owns each row of a result and adds in a fixed order; sums over all edges are cut into
parts that are added up afterwards. So there are no atomic additions, and results repeat to the bit.
Formulas stand in `csrc`, which the names follow. Sums are made in float32 or wider: scales are
constants, because Triton passes numbers as float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    decay = tl.exp(-2 * tl.abs(x))
    size = (1 - decay) / (1 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0, x)  # not maximum(x, 0), which is 0 for what is not a number


@triton.jit
def _relu_grad(g, x):
    return tl.where(x <= 0, 0, g)


@triton.jit
def _row(pointer, row, f, width, block: tl.constexpr):
    return tl.load(pointer + row * width + f, mask=f < width, other=0)


@triton.jit
def _pair(i, j, first, first_pair, last):
    """The number of the pair of two atoms of the molecule with atoms first ... last - 1."""
    low = tl.minimum(i, j) - first
    high = tl.maximum(i, j) - first
    return first_pair + low * (2 * (last - first) - low - 1) // 2 + high - low - 1


@triton.jit
def _molecule(graph, ptr, pair_ptr, i):
    m = tl.load(graph + i)
    return tl.load(ptr + m), tl.load(ptr + m + 1), tl.load(pair_ptr + m)


@triton.jit
def interpolated_conv(x, table, first_row, weight, graph, ptr, pair_ptr, out, width,
                      block: tl.constexpr):  # fmt: skip
    """One atom: y_i = sum_j x_j sum_q weight_q table[first + q]."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    first, last, first_pair = _molecule(graph, ptr, pair_ptr, i)
    total = tl.zeros([block], out.dtype.element_ty)
    for j in range(first, last):
        if j != i:
            p = _pair(i, j, first, first_pair, last)
            row = tl.load(first_row + p)
            filters = tl.zeros([block], out.dtype.element_ty)
            for q in range(4):
                filters += tl.load(weight + 4 * p + q) * _row(table, row + q, f, width, block)
            total += filters * _row(x, j, f, width, block)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def interpolated_table_grad(x, g, weight, index, order, cell_ptr, parts, num_pairs, width,
                            block: tl.constexpr):  # fmt: skip
    """One cell between knots: its four rows of weight_q (x_i g_j + x_j g_i)."""
    k = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    q = tl.arange(0, 4)
    total = tl.zeros([4, block], parts.dtype.element_ty)
    for s in range(tl.load(cell_ptr + k), tl.load(cell_ptr + k + 1)):
        p = tl.load(order + s)
        i, j = tl.load(index + p), tl.load(index + num_pairs + p)
        both = _row(x, i, f, width, block) * _row(g, j, f, width, block)
        both += _row(x, j, f, width, block) * _row(g, i, f, width, block)
        total += tl.load(weight + 4 * p + q)[:, None] * both[None, :]
    at = (k * 4 + q)[:, None] * width + f[None, :]
    tl.store(parts + at, total, mask=(f < width)[None, :])


@triton.jit
def pair_sum(weight, x, graph, ptr, pair_ptr, out, atoms, channels, width, block: tl.constexpr):
    """One atom and channel: y_ci = sum_j weight_pc x_cj."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first, last, first_pair = _molecule(graph, ptr, pair_ptr, i)
    total = tl.zeros([block], out.dtype.element_ty)
    for j in range(first, last):
        if j != i:
            p = _pair(i, j, first, first_pair, last)
            w = tl.load(weight + p * channels + c)
            total += w * _row(x, c * atoms + j, f, width, block)
    tl.store(out + (c * atoms + i) * width + f, total, mask=f < width)


@triton.jit
def pair_dot(x, g, index, out, num_pairs, atoms, channels, width, block: tl.constexpr,
             tile: tl.constexpr):  # fmt: skip
    """A tile of pairs of one channel: <x_ci, g_cj> + <x_cj, g_ci>."""
    p = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    c = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    there = p < num_pairs
    i = tl.load(index + p, mask=there, other=0)
    j = tl.load(index + num_pairs + p, mask=there, other=0)
    at_i = (c * atoms + i)[:, None] * width + f[None, :]
    at_j = (c * atoms + j)[:, None] * width + f[None, :]
    mask = there[:, None] & (f < width)[None, :]
    both = tl.load(x + at_i, mask=mask, other=0) * tl.load(g + at_j, mask=mask, other=0)
    both += tl.load(x + at_j, mask=mask, other=0) * tl.load(g + at_i, mask=mask, other=0)
    tl.store(out + p * channels + c, tl.sum(both, axis=1), mask=there)


@triton.jit
def pair_attention(q, k, index, out, num_pairs, atoms, channels, scale: tl.constexpr,
                   heads: tl.constexpr, chunk: tl.constexpr, block: tl.constexpr,
                   tile: tl.constexpr):  # fmt: skip
    """A tile of pairs of one channel: tanh of both directions' logits, averaged over heads."""
    p = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    c = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, block)
    there = p < num_pairs
    mask = there[:, None] & (d < chunk)[None, :]
    i = tl.load(index + p, mask=there, other=0)
    j = tl.load(index + num_pairs + p, mask=there, other=0)
    total = tl.zeros([tile], out.dtype.element_ty)
    for h in range(heads):
        at_i = (c * atoms + i)[:, None] * heads * chunk + h * chunk + d[None, :]
        at_j = (c * atoms + j)[:, None] * heads * chunk + h * chunk + d[None, :]
        qi, ki = tl.load(q + at_i, mask, other=0), tl.load(k + at_i, mask, other=0)
        qj, kj = tl.load(q + at_j, mask, other=0), tl.load(k + at_j, mask, other=0)
        total += _tanh(scale * tl.sum(qi * kj, axis=1)) + _tanh(scale * tl.sum(qj * ki, axis=1))
    tl.store(out + p * channels + c, total / (2 * heads), mask=there)


@triton.jit
def pair_attention_grad(g, q, k, graph, ptr, pair_ptr, gq, gk, atoms, channels,
                        scale: tl.constexpr, heads: tl.constexpr, chunk: tl.constexpr,
                        block: tl.constexpr):  # fmt: skip
    """One atom and channel: the gradients of its query and key, head by head."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, block)
    first, last, first_pair = _molecule(graph, ptr, pair_ptr, i)
    for h in range(heads):
        at = (c * atoms + i) * heads * chunk + h * chunk + d
        mask = d < chunk
        qi, ki = tl.load(q + at, mask, other=0), tl.load(k + at, mask, other=0)
        of_q, of_k = tl.zeros([block], gq.dtype.element_ty), tl.zeros([block], gq.dtype.element_ty)
        for j in range(first, last):
            if j != i:
                other = (c * atoms + j) * heads * chunk + h * chunk + d
                qj, kj = tl.load(q + other, mask, other=0), tl.load(k + other, mask, other=0)
                p = _pair(i, j, first, first_pair, last)
                upper = tl.load(g + p * channels + c) * scale / (2 * heads)
                sent = _tanh(scale * tl.sum(qi * kj, axis=0))
                received = _tanh(scale * tl.sum(qj * ki, axis=0))
                of_q += upper * (1 - sent * sent) * kj
                of_k += upper * (1 - received * received) * qj
        tl.store(gq + at, of_q, mask)
        tl.store(gk + at, of_k, mask)


@triton.jit
def sum_over_edges(x, row_ptr, source, out, width, block: tl.constexpr):
    """One atom: the sum of its neighbours' rows."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    total = tl.zeros([block], out.dtype.element_ty)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        total += _row(x, tl.load(source + e), f, width, block)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def gin_message(x, table, eps, code, row_ptr, source, out, width, block: tl.constexpr):
    """One atom: (1 + eps) x_i + sum of relu(x_j + table[code])."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    total = (1 + tl.load(eps)) * _row(x, i, f, width, block)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        message = _row(x, tl.load(source + e), f, width, block)
        message += _row(table, tl.load(code + e), f, width, block)
        total += _relu(message)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def gin_message_grad(g, x, table, eps, code, row_ptr, source, gx, width, block: tl.constexpr):
    """One atom: (1 + eps) g_j + sum_i relu'(x_j + table[code]) g_i."""
    j = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, block)
    xj = _row(x, j, f, width, block)
    total = (1 + tl.load(eps)) * _row(g, j, f, width, block)
    for e in range(tl.load(row_ptr + j), tl.load(row_ptr + j + 1)):
        received = _row(g, tl.load(source + e), f, width, block)
        message = xj + _row(table, tl.load(code + e), f, width, block)
        total += _relu_grad(received, message)
    tl.store(gx + j * width + f, total, mask=f < width)


@triton.jit
def gin_table_grad(g, x, table, order, code_ptr, source, target, parts, width,
                   num_parts: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """One part of the bonds of one code: sum of relu'(x_j + table[code]) g_i."""
    c = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first = tl.load(code_ptr + c)
    count = tl.load(code_ptr + c + 1) - first
    bond = _row(table, c, f, width, block)
    total = tl.zeros([block], parts.dtype.element_ty)
    start = first + part * count // num_parts
    for s in range(start, first + (part + 1) * count // num_parts):
        e = tl.load(order + s)
        message = _row(x, tl.load(source + e), f, width, block) + bond
        received = _row(g, tl.load(target + e), f, width, block)
        total += _relu_grad(received, message)
    tl.store(parts + (c * num_parts + part) * width + f, total, mask=f < width)


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
