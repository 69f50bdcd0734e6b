"""Frames of edges: see `csrc/frames.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl


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
