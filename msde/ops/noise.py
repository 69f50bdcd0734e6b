"""Counter-based random numbers on the device that holds the ids: see `msde.philox`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msde import philox
from msde.ops import dispatch, triton
from msde.ops.cpp import call
from msde.philox import Key, Stream

COUNTERS = 256  # of one Triton program


def words(
    key: Key, stream: Stream, uid: Tensor, item: Tensor | None = None, count: int = 1
) -> Tensor:
    """Return `philox.words` of the same arguments, (rows, count) int64, to the bit.

    torch.compile joins it in plain torch with what is made of it, and takes the epoch as a tensor.
    """
    if not torch.compiler.is_compiling() and dispatch.available(uid.device.type):
        return _words(uid, item, count, int(stream), key.words)
    return philox.words(key, stream, uid, 0 if item is None else item, count)


def normals(key: Key, stream: Stream, uid: Tensor, item: Tensor, count: int) -> Tensor:
    """Return `philox.normal` of the same arguments, (rows, count) float32, but for rounding."""
    if dispatch.available(uid.device.type):
        low, high = key.words
        if isinstance(high, Tensor):
            return _normals(uid, item, count, int(stream), (low, 0), high)
        return _normals(uid, item, count, int(stream), (low, high))
    return philox.normal(key, stream, uid, item, count)


def dropout_factors(shape: tuple[int, ...], dropout: float, like: Tensor) -> Tensor:
    """Draw the factors of dropout: 0 with probability `dropout`, else 1 / (1 - dropout).

    torch's generator gives the seed. On a CPU the rest does not depend on the backend.

    Args:
        like: a tensor of the dtype and the device of the result.
    """
    if not dispatch.on_cpu(like) or torch.compiler.is_compiling():
        return like.new_empty(shape).bernoulli_(1 - dropout).div_(1 - dropout)
    draw = _dropout_factors_cpp if dispatch.available() else philox.dropout_factors
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return draw(seed, math.prod(shape), dropout).view(shape).to(like.dtype)


def _words_cpp(
    uid: Tensor, item: Tensor | None, count: int, stream: int, key: Sequence[int]
) -> Tensor:
    """Draw words; `key` holds the two words of Philox's key."""
    (low, high), items = key, 0 if item is None else item
    return philox.words(Key(high << 32 | low, 0), Stream(stream), uid, items, count)


def _normals_cpp(
    uid: Tensor,
    item: Tensor,
    count: int,
    stream: int,
    key: Sequence[int],
    high: Tensor | None = None,
) -> Tensor:
    """Draw normals; `high`, (), is the second word of the key where it is given."""
    uid, item = uid.contiguous(), item.contiguous()
    out = uid.new_empty(uid.shape[0], count, dtype=torch.float32)
    call("normals", uid, item, uid.shape[0], count, stream, *key, high, out)
    return out


def _dropout_factors_cpp(seed: int, count: int, dropout: float) -> Tensor:
    out = torch.empty(count)
    key, threshold = Key(seed, 0).words, philox.threshold(dropout)
    call("dropout_factors", count, int(Stream.DROPOUT), *key, threshold, 1 / (1 - dropout), out)
    return out


def _counters(uid, count, stream, key):
    """Return the grid of the kernels, and the numbers that they take."""
    blocks = triton.cdiv(count, 4)
    # Triton takes the key's words as signed numbers of 32 bits.
    low, high = [(word ^ 1 << 31) - (1 << 31) for word in key]
    counters = len(uid) * blocks
    return (triton.cdiv(counters, COUNTERS),), [counters, blocks, count, stream, low, high]


def _words_triton(uid, item, count, stream, key):
    uid, has_item = uid.contiguous(), item is not None
    out = uid.new_empty(len(uid), count)
    grid, numbers = _counters(uid, count, stream, key)
    items = item.contiguous() if has_item else uid
    triton.kernels("noise").words[grid](uid, items, out, *numbers, has_item, COUNTERS)
    return out


def _normals_triton(uid, item, count, stream, key, high=None):
    uid, item = uid.contiguous(), item.contiguous()
    out = uid.new_empty(len(uid), count, dtype=torch.float32)
    grid, numbers = _counters(uid, count, stream, key)
    has_high = high is not None
    at = high if has_high else uid
    triton.kernels("noise").normals[grid](uid, item, at, out, *numbers, has_high, COUNTERS)
    return out


_words = dispatch.register("words", _words_cpp, _words_triton)
_normals = dispatch.register("normals", _normals_cpp, _normals_triton)
