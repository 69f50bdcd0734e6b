"""Sums and attention over pairs of atoms: see `csrc/pairs.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.device import load_row, molecule_of, pair_number, tanh


@triton.jit
def pair_sum(weight, x, graph, ptr, pair_ptr, out, atoms, channels, width, block: tl.constexpr):
    """One atom and channel: y_ci = sum_j weight_pc x_cj."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, block)
    first, last, first_pair = molecule_of(graph, ptr, pair_ptr, i)
    total = tl.zeros([block], out.dtype.element_ty)
    for j in range(first, last):
        if j != i:
            p = pair_number(i, j, first, first_pair, last)
            w = tl.load(weight + p * channels + c)
            total += w * load_row(x, c * atoms + j, f, width, block)
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
        total += tanh(scale * tl.sum(qi * kj, axis=1)) + tanh(scale * tl.sum(qj * ki, axis=1))
    tl.store(out + p * channels + c, total / (2 * heads), mask=there)


@triton.jit
def pair_attention_grad(g, q, k, graph, ptr, pair_ptr, gq, gk, atoms, channels,
                        scale: tl.constexpr, heads: tl.constexpr, chunk: tl.constexpr,
                        block: tl.constexpr):  # fmt: skip
    """One atom and channel: the gradients of its query and key, head by head."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, block)
    first, last, first_pair = molecule_of(graph, ptr, pair_ptr, i)
    for h in range(heads):
        at = (c * atoms + i) * heads * chunk + h * chunk + d
        mask = d < chunk
        qi, ki = tl.load(q + at, mask, other=0), tl.load(k + at, mask, other=0)
        of_q, of_k = tl.zeros([block], gq.dtype.element_ty), tl.zeros([block], gq.dtype.element_ty)
        for j in range(first, last):
            if j != i:
                other = (c * atoms + j) * heads * chunk + h * chunk + d
                qj, kj = tl.load(q + other, mask, other=0), tl.load(k + other, mask, other=0)
                p = pair_number(i, j, first, first_pair, last)
                upper = tl.load(g + p * channels + c) * scale / (2 * heads)
                sent = tanh(scale * tl.sum(qi * kj, axis=0))
                received = tanh(scale * tl.sum(qj * ki, axis=0))
                of_q += upper * (1 - sent * sent) * kj
                of_k += upper * (1 - received * received) * qj
        tl.store(gq + at, of_q, mask)
        tl.store(gk + at, of_k, mask)
