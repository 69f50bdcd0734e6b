"""BatchNorm in training: see `csrc/norms.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.device import apply_relu, relu_grad


@triton.jit
def _part(part, rows, num_parts: tl.constexpr):
    """The range of rows, first to last (exclusive), of one of `num_parts` equal parts."""
    return part * rows // num_parts, (part + 1) * rows // num_parts


@triton.jit
def _tile_at(start, last, f, width, tile: tl.constexpr):
    """The places of columns f of `tile` rows from `start` on, and which are there before `last`."""
    r = start + tl.arange(0, tile)
    return r[:, None] * width + f[None, :], (r < last)[:, None] & (f < width)[None, :]


@triton.jit
def batch_norm_parts(x, num_valid, parts, rows, width, has_padding: tl.constexpr,
                     num_parts: tl.constexpr, tile: tl.constexpr,
                     block: tl.constexpr):  # fmt: skip
    """A part of the rows that count, some columns: their mean, and the squares around it."""
    part = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    mask = f < width
    if has_padding:
        first, last = _part(part, tl.load(num_valid), num_parts)
    else:
        first, last = _part(part, rows, num_parts)
    total = tl.zeros([tile, block], parts.dtype.element_ty)
    for start in range(first, last, tile):
        at, there = _tile_at(start, last, f, width, tile)
        total += tl.load(x + at, mask=there, other=0)
    mean = tl.sum(total, axis=0) / tl.maximum(last - first, 1)
    squares = tl.zeros([tile, block], parts.dtype.element_ty)
    for start in range(first, last, tile):
        at, there = _tile_at(start, last, f, width, tile)
        apart = tl.where(there, tl.load(x + at, mask=there, other=0) - mean[None, :], 0)
        squares += apart * apart
    tl.store(parts + 2 * part * width + f, mean, mask=mask)
    tl.store(parts + (2 * part + 1) * width + f, tl.sum(squares, axis=0), mask=mask)


@triton.jit
def _number_in_parts(count, num_parts: tl.constexpr):
    """How many of so many rows each part has, (num_parts,)."""
    first, last = _part(tl.arange(0, num_parts).to(tl.int64), count, num_parts)
    return last - first


@triton.jit
def _of_parts(parts, which: tl.constexpr, f, width, num_parts: tl.constexpr):
    """One of the two rows of numbers that each part has, (num_parts, columns)."""
    row = 2 * tl.arange(0, num_parts) + which
    at = row[:, None].to(tl.int64) * width + f[None, :]
    return tl.load(parts + at, mask=(f < width)[None, :], other=0)


@triton.jit
def _column(pointer, f, width):
    return tl.load(pointer + f, mask=f < width, other=0)


@triton.jit
def batch_norm(x, weight, bias, parts, num_valid, mean, variance, y, rows, width,
               eps: tl.constexpr, relu: tl.constexpr, has_padding: tl.constexpr,
               num_parts: tl.constexpr, num_tiles: tl.constexpr, tile: tl.constexpr,
               block: tl.constexpr):  # fmt: skip
    """Some rows and columns: normalised; the first rows' program stores mean and variance.

    Each program makes the statistics of its columns from those of all parts.
    """
    start = tl.program_id(0).to(tl.int64) * num_tiles * tile
    f = tl.program_id(1) * block + tl.arange(0, block)
    count = rows.to(tl.int64)
    if has_padding:
        count = tl.load(num_valid)
    number = _number_in_parts(count, num_parts).to(mean.dtype.element_ty)[:, None]
    means = _of_parts(parts, 0, f, width, num_parts)
    of_all = tl.sum(means * number, axis=0) / count
    apart = means - of_all[None, :]
    squares = _of_parts(parts, 1, f, width, num_parts) + apart * apart * number
    spread = tl.sum(squares, axis=0) / count
    if start == 0:
        tl.store(mean + f, of_all, mask=f < width)
        tl.store(variance + f, spread, mask=f < width)
    scale = _column(weight, f, width) / tl.sqrt(spread + eps)
    shift = _column(bias, f, width) - of_all * scale
    for number_of_tile in range(num_tiles):
        at, there = _tile_at(start + number_of_tile * tile, rows, f, width, tile)
        out = tl.load(x + at, mask=there, other=0) * scale[None, :] + shift[None, :]
        if relu:
            out = apply_relu(out)
        tl.store(y + at, out, mask=there)


@triton.jit
def batch_norm_grad_parts(g, x, weight, bias, mean, variance, parts, rows, width,
                          eps: tl.constexpr, relu: tl.constexpr, num_parts: tl.constexpr,
                          tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """A part of the rows, some columns: its share of the gradients of weight and bias."""
    part = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    mask = f < width
    inverse = 1 / tl.sqrt(_column(variance, f, width) + eps)
    centre, w, b = _column(mean, f, width), _column(weight, f, width), _column(bias, f, width)
    of_weight = tl.zeros([tile, block], parts.dtype.element_ty)
    of_bias = tl.zeros([tile, block], parts.dtype.element_ty)
    first, last = _part(part, rows, num_parts)
    for start in range(first, last, tile):
        at, there = _tile_at(start, last, f, width, tile)
        normal = (tl.load(x + at, mask=there, other=0) - centre[None, :]) * inverse[None, :]
        upper = tl.load(g + at, mask=there, other=0)
        if relu:
            upper = relu_grad(upper, normal * w[None, :] + b[None, :])
        of_weight += upper * normal
        of_bias += upper
    tl.store(parts + 2 * part * width + f, tl.sum(of_weight, axis=0), mask=mask)
    tl.store(parts + (2 * part + 1) * width + f, tl.sum(of_bias, axis=0), mask=mask)


@triton.jit
def batch_norm_grad(g, x, weight, bias, mean, variance, parts, g_weight, g_bias, num_valid, gx,
                    rows, width, eps: tl.constexpr, relu: tl.constexpr, has_padding: tl.constexpr,
                    num_parts: tl.constexpr, num_tiles: tl.constexpr, tile: tl.constexpr,
                    block: tl.constexpr):  # fmt: skip
    """Some rows and columns: the gradient of x; the first rows' program stores the others."""
    first = tl.program_id(0).to(tl.int64) * num_tiles * tile
    f = tl.program_id(1) * block + tl.arange(0, block)
    count = rows.to(tl.int64)
    if has_padding:
        count = tl.load(num_valid)
    of_weight = tl.sum(_of_parts(parts, 0, f, width, num_parts), axis=0)
    of_bias = tl.sum(_of_parts(parts, 1, f, width, num_parts), axis=0)
    if first == 0:
        tl.store(g_weight + f, of_weight, mask=f < width)
        tl.store(g_bias + f, of_bias, mask=f < width)
    inverse = 1 / tl.sqrt(_column(variance, f, width) + eps)
    centre, w, b = _column(mean, f, width), _column(weight, f, width), _column(bias, f, width)
    for number_of_tile in range(num_tiles):
        start = first + number_of_tile * tile
        at, there = _tile_at(start, rows, f, width, tile)
        normal = (tl.load(x + at, mask=there, other=0) - centre[None, :]) * inverse[None, :]
        upper = tl.load(g + at, mask=there, other=0)
        if relu:
            upper = relu_grad(upper, normal * w[None, :] + b[None, :])
        through = of_bias[None, :] + normal * of_weight[None, :]
        upper -= tl.where((start + tl.arange(0, tile) < count)[:, None], through / count, 0)
        tl.store(gx + at, upper * (w * inverse)[None, :], mask=there)
