"""Layers on GPUs, in Triton: BatchNorm and the frames of edges; formulas stand in `csrc`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.kernels import _relu, _relu_grad


@triton.jit
def _part(part, rows, num_parts: tl.constexpr):
    """The first row of one of the equal parts of some rows, and the one behind its last."""
    return part * rows // num_parts, (part + 1) * rows // num_parts


@triton.jit
def batch_norm_parts(x, counted, parts, rows, width, has_counted: tl.constexpr,
                     num_parts: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """A part of the rows that count, some columns: their mean, and the squares around it."""
    part = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    mask = f < width
    if has_counted:
        first, last = _part(part, tl.load(counted), num_parts)
    else:
        first, last = _part(part, rows, num_parts)
    total = tl.zeros([block], parts.dtype.element_ty)
    for r in range(first, last):
        total += tl.load(x + r * width + f, mask=mask, other=0)
    mean = total / tl.maximum(last - first, 1)
    squares = tl.zeros([block], parts.dtype.element_ty)
    for r in range(first, last):
        apart = tl.load(x + r * width + f, mask=mask, other=0) - mean
        squares += apart * apart
    tl.store(parts + 2 * part * width + f, mean, mask=mask)
    tl.store(parts + (2 * part + 1) * width + f, squares, mask=mask)


@triton.jit
def batch_norm_statistics(parts, counted, mean, variance, rows, width, has_counted: tl.constexpr,
                          num_parts: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Some columns: the mean and the biased variance of all parts together, in their order."""
    f = tl.program_id(0) * block + tl.arange(0, block)
    mask = f < width
    of_all = tl.zeros([block], mean.dtype.element_ty)
    squares = tl.zeros([block], mean.dtype.element_ty)
    count = rows.to(tl.int64)
    if has_counted:
        count = tl.load(counted)
    for part in range(num_parts):
        before, after = _part(part, count, num_parts)
        if after > before:
            share = (after - before).to(mean.dtype.element_ty) / after
            apart = tl.load(parts + 2 * part * width + f, mask=mask, other=0) - of_all
            of_all += apart * share
            squares += tl.load(parts + (2 * part + 1) * width + f, mask=mask, other=0)
            squares += apart * apart * share * before
    tl.store(mean + f, of_all, mask=mask)
    tl.store(variance + f, squares / count, mask=mask)


@triton.jit
def _column(pointer, f, width):
    return tl.load(pointer + f, mask=f < width, other=0)


@triton.jit
def batch_norm(x, weight, bias, mean, variance, y, rows, width, eps: tl.constexpr,
               relu: tl.constexpr, tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Some rows and columns: normalised."""
    r = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    f = tl.program_id(1) * block + tl.arange(0, block)
    scale = _column(weight, f, width) / tl.sqrt(_column(variance, f, width) + eps)
    shift = _column(bias, f, width) - _column(mean, f, width) * scale
    at = r[:, None] * width + f[None, :]
    there = (r < rows)[:, None] & (f < width)[None, :]
    out = tl.load(x + at, mask=there, other=0) * scale[None, :] + shift[None, :]
    if relu:
        out = _relu(out)
    tl.store(y + at, out, mask=there)


@triton.jit
def batch_norm_grad_parts(g, x, weight, bias, mean, variance, parts, rows, width,
                          eps: tl.constexpr, relu: tl.constexpr, num_parts: tl.constexpr,
                          block: tl.constexpr):  # fmt: skip
    """A part of the rows, some columns: its share of the gradients of weight and bias."""
    part = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    mask = f < width
    inverse = 1 / tl.sqrt(_column(variance, f, width) + eps)
    centre, w, b = _column(mean, f, width), _column(weight, f, width), _column(bias, f, width)
    of_weight = tl.zeros([block], parts.dtype.element_ty)
    of_bias = tl.zeros([block], parts.dtype.element_ty)
    first, last = _part(part, rows, num_parts)
    for r in range(first, last):
        normal = (tl.load(x + r * width + f, mask=mask, other=0) - centre) * inverse
        upper = tl.load(g + r * width + f, mask=mask, other=0)
        if relu:
            upper = _relu_grad(upper, normal * w + b)
        of_weight += upper * normal
        of_bias += upper
    tl.store(parts + 2 * part * width + f, of_weight, mask=mask)
    tl.store(parts + (2 * part + 1) * width + f, of_bias, mask=mask)


@triton.jit
def batch_norm_grad(g, x, weight, bias, mean, variance, g_weight, g_bias, counted, gx, rows, width,
                    eps: tl.constexpr, relu: tl.constexpr, has_counted: tl.constexpr,
                    tile: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Some rows and columns: the gradient of x, given those of weight and bias."""
    r = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    f = tl.program_id(1) * block + tl.arange(0, block)
    count = rows.to(tl.int64)
    if has_counted:
        count = tl.load(counted)
    inverse = 1 / tl.sqrt(_column(variance, f, width) + eps)
    w = _column(weight, f, width)
    at = r[:, None] * width + f[None, :]
    there = (r < rows)[:, None] & (f < width)[None, :]
    normal = tl.load(x + at, mask=there, other=0) - _column(mean, f, width)[None, :]
    normal *= inverse[None, :]
    upper = tl.load(g + at, mask=there, other=0)
    if relu:
        upper = _relu_grad(upper, normal * w[None, :] + _column(bias, f, width)[None, :])
    of_weight, of_bias = _column(g_weight, f, width), _column(g_bias, f, width)
    through = of_bias[None, :] + normal * of_weight[None, :]
    upper -= tl.where((r < count)[:, None], through / count, 0)
    tl.store(gx + at, upper * (w * inverse)[None, :], mask=there)


@triton.jit
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@triton.jit
def _inner(ax, ay, az, bx, by, bz):
    return ax * bx + ay * by + az * bz


@triton.jit
def _vector(pointer, row, there):
    x = tl.load(pointer + 3 * row, mask=there, other=0)
    y = tl.load(pointer + 3 * row + 1, mask=there, other=0)
    return x, y, tl.load(pointer + 3 * row + 2, mask=there, other=0)


@triton.jit
def _store_vector(pointer, row, there, x, y, z):
    tl.store(pointer + 3 * row, x, mask=there)
    tl.store(pointer + 3 * row + 1, y, mask=there)
    tl.store(pointer + 3 * row + 2, z, mask=there)


@triton.jit
def edge_geometry(pos, index, frames, of_source, of_target, angle, distance, edges,
                  collinear: tl.constexpr, epsilon: tl.constexpr, tile: tl.constexpr):  # fmt: skip
    """A tile of edges: their frames, and their ends in them."""
    e = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    there = e < edges
    ax, ay, az = _vector(pos, tl.load(index + e, mask=there, other=0), there)
    bx, by, bz = _vector(pos, tl.load(index + edges + e, mask=there, other=0), there)
    dx, dy, dz = ax - bx, ay - by, az - bz
    length = tl.sqrt(_inner(dx, dy, dz, dx, dy, dz))
    tl.store(distance + e, length, mask=there)
    dx, dy, dz = dx / (length + epsilon), dy / (length + epsilon), dz / (length + epsilon)
    cx, cy, cz = _cross(ax, ay, az, bx, by, bz)
    fade = tl.sqrt(_inner(ax, ay, az, ax, ay, az)) * tl.sqrt(_inner(bx, by, bz, bx, by, bz))
    across = tl.sqrt(_inner(cx, cy, cz, cx, cy, cz)) + collinear * fade + epsilon
    cx, cy, cz = cx / across, cy / across, cz / across
    vx, vy, vz = _cross(dx, dy, dz, cx, cy, cz)
    _store_vector(frames, 3 * e, there, dx, dy, dz)
    _store_vector(frames, 3 * e + 1, there, cx, cy, cz)
    _store_vector(frames, 3 * e + 2, there, vx, vy, vz)
    s0, s2 = _inner(dx, dy, dz, ax, ay, az), _inner(vx, vy, vz, ax, ay, az)
    t0, t2 = _inner(dx, dy, dz, bx, by, bz), _inner(vx, vy, vz, bx, by, bz)
    s1 = tl.abs(_inner(cx, cy, cz, ax, ay, az))
    t1 = tl.abs(_inner(cx, cy, cz, bx, by, bz))
    tl.store(of_source + 2 * e, s0, mask=there)
    tl.store(of_source + 2 * e + 1, s2, mask=there)
    tl.store(of_target + 2 * e, t0, mask=there)
    tl.store(of_target + 2 * e + 1, t2, mask=there)
    norms = tl.sqrt(_inner(s0, s1, s2, s0, s1, s2)) + epsilon
    norms *= tl.sqrt(_inner(t0, t1, t2, t0, t1, t2)) + epsilon
    cosine = _inner(s0, s1, s2, t0, t1, t2) / norms
    square = 1 - cosine * cosine
    square = tl.where(square < epsilon * epsilon, epsilon * epsilon, square)
    tl.store(angle + 2 * e, tl.sqrt(square), mask=there)
    tl.store(angle + 2 * e + 1, cosine, mask=there)


@triton.jit
def frame_mean(b, frames, row_ptr, y):
    """One atom: the mean over the edges into it of sum_k b_k frame_k."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, 4)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    total = tl.zeros([4], y.dtype.element_ty)
    for e in range(first, last):
        for k in range(3):
            row = tl.load(frames + 9 * e + 3 * k + d, mask=d < 3, other=0)
            total += tl.load(b + 3 * e + k) * row
    tl.store(y + 3 * i + d, total / tl.maximum(last - first, 1), mask=d < 3)


@triton.jit
def frame_mean_grad(g, frames, row_ptr, gb, tile: tl.constexpr):
    """One atom: the gradient of b for the edges into it."""
    i = tl.program_id(0).to(tl.int64)
    first, last = tl.load(row_ptr + i), tl.load(row_ptr + i + 1)
    gx, gy, gz = _vector(g, i, True)
    for start in range(first, last, tile):
        e = start + tl.arange(0, tile)
        there = e < last
        for k in range(3):
            fx, fy, fz = _vector(frames, 3 * e + k, there)
            tl.store(gb + 3 * e + k, _inner(gx, gy, gz, fx, fy, fz) / (last - first), mask=there)
