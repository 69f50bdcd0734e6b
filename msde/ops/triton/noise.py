"""Random numbers on GPUs, in Triton: see `msde.philox` and `csrc/noise.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(2.0**-32)
_HALF_UNIT = tl.constexpr(2.0**-33)
_TURN = tl.constexpr(6.283185307179586)
# Numbers that differ from one draw to the next: Triton would compile a kernel for some values.
_CHANGING = ["stream", "low", "high"]


@triton.jit
def _encrypted(uid, item, n, there, blocks, stream, low, high, has_item: tl.constexpr):
    """The four random words of the counters n, `blocks` of them in a row."""
    row, block = n // blocks, n % blocks
    ids = tl.load(uid + row, mask=there, other=0)
    c0, c1 = ids.to(tl.uint32), (ids >> 32).to(tl.uint32)
    if has_item:
        c2 = tl.load(item + row, mask=there, other=0).to(tl.uint32)
    else:
        c2 = tl.zeros_like(c0)
    c3 = ((block << 8) | stream).to(tl.uint32)
    return tl.philox_impl(c0, c1, c2, c3, low.to(tl.uint32), high.to(tl.uint32))


@triton.jit
def _store_four(out, n, there, blocks, count, one, two, three, four):
    """Store four numbers of each counter n where a row has that many, (rows, count)."""
    at, column = out + n // blocks * count, n % blocks * 4
    tl.store(at + column, one, mask=there)
    tl.store(at + column + 1, two, mask=there & (column + 1 < count))
    tl.store(at + column + 2, three, mask=there & (column + 2 < count))
    tl.store(at + column + 3, four, mask=there & (column + 3 < count))


@triton.jit(do_not_specialize=_CHANGING)
def words(uid, item, out, counters, blocks, count, stream, low, high, has_item: tl.constexpr,
          tile: tl.constexpr):  # fmt: skip
    """A tile of counters: their words."""
    n = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    there = n < counters
    one, two, three, four = _encrypted(uid, item, n, there, blocks, stream, low, high, has_item)
    _store_four(out, n, there, blocks, count, one.to(tl.int64), two.to(tl.int64),
                three.to(tl.int64), four.to(tl.int64))  # fmt: skip


@triton.jit
def _box_muller(one, other):
    """Two standard normals."""
    radius = tl.sqrt(-2 * tl.log(one.to(tl.float32) * _UNIT + _HALF_UNIT))
    angle = other.to(tl.float32) * _UNIT * _TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=_CHANGING)
def normals(uid, item, high_at, out, counters, blocks, count, stream, low, high,
            has_high: tl.constexpr, tile: tl.constexpr):  # fmt: skip
    """A tile of counters: two pairs of normals each."""
    if has_high:
        high = tl.load(high_at)
    n = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    there = n < counters
    one, two, three, four = _encrypted(uid, item, n, there, blocks, stream, low, high, True)
    first, second = _box_muller(one, two)
    third, fourth = _box_muller(three, four)
    _store_four(out, n, there, blocks, count, first, second, third, fourth)
