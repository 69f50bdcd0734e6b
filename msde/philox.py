"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011).

Noise, times, negatives and masks of pretraining come from here, and dropout on CPUs.

A number is a pure function of (seed, epoch, stream, molecule uid, item within the molecule). It
depends on no rank, world size, batch-mate or earlier draw, so a resumed run needs no generator
state. Integers are the same on every device; normals agree to rounding. Tensors of words are int64
with values below 2^32.
"""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Stream(enum.IntEnum):
    """The purpose of a number; two streams never share one."""

    SHUFFLE_BLOCKS = 1
    SHUFFLE_MOLECULES = 2
    CONFORMER = 3
    DROPOUT = 4
    TIME_2D_TO_3D = 5
    TIME_3D_TO_2D = 6
    POSITION_NOISE = 7
    ATOM_TYPE_NOISE = 8
    BOND_NOISE = 9
    NEGATIVES_OF_2D = 10
    NEGATIVES_OF_3D = 11
    MASKING = 12
    MIXTURE = 13
    SAMPLING = 14
    SHIFTS = 15
    SHIFT_STD = 16
    DISPLACEMENTS = 17
    HYDROGENS = 18
    HIDDEN_TYPES = 19


class Key(NamedTuple):
    """The run's seed and the epoch, which make the key of the generator."""

    seed: int
    epoch: Any  # an integer; of a compiled step a tensor of one, ()

    @property
    def words(self) -> tuple[int, Any]:
        """The two words of Philox's key."""
        return self.seed & _MASK, (self.seed >> 32) & _MASK ^ self.epoch


def philox4x32(counter: tuple[Any, ...], key: tuple[int, Any]) -> tuple[Any, ...]:
    """Turn 128-bit counters, as four words, into four random words.

    The words are integers of Python's, or tensors of shapes that broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which keeps the bits used here.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def words(key: Key, stream: Stream, uid: Tensor, item: Tensor | int = 0, count: int = 1) -> Tensor:
    """Draw `count` random 32-bit words a row, (rows, count) int64.

    Args:
        uid: (rows,) int64, the 64 bits of the molecules' ids.
        item: (rows,) int64 or one number below 2^32: the atom or pair within the molecule.
    """
    blocks = torch.arange(-(-count // 4), device=uid.device)  # (num_blocks,)
    counter = (
        (uid & _MASK).unsqueeze(-1),
        ((uid >> 32) & _MASK).unsqueeze(-1),
        item.unsqueeze(-1) if isinstance(item, Tensor) else item,
        (blocks << 8) | int(stream),
    )  # (rows, 1), the last (num_blocks,), the item perhaps a number
    drawn = philox4x32(counter, key.words)
    shape = (len(uid), len(blocks))
    stacked = torch.stack([w.expand(shape) for w in drawn], dim=-1)  # (rows, num_blocks, 4)
    return stacked.flatten(1)[:, :count]  # (rows, count)


def normal(key: Key, stream: Stream, uid: Tensor, item: Tensor | int, count: int) -> Tensor:
    """Draw `count` standard normals a row (Box and Muller 1958), (rows, count) float32.

    `uid` and `item` are those of `words`.
    """
    pairs = -(-count // 2)
    drawn = words(key, stream, uid, item, 2 * pairs).to(torch.float32) * 2.0**-32  # (rows, 2 pairs)
    # float32 rounds the words to 24 bits; the offset keeps the logarithm finite.
    radius = torch.sqrt(-2 * torch.log(drawn[:, 0::2] + 2.0**-33))  # (rows, pairs)
    angle = 2 * math.pi * drawn[:, 1::2]  # (rows, pairs)
    both = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return both.flatten(1)[:, :count]  # (rows, count)


def dropout_factors(seed: int, count: int, dropout: float) -> Tensor:
    """Draw the factors of dropout, (count,) float32: 0, or 1 / (1 - dropout) for what is kept."""
    blocks = torch.arange(-(-count // 4))  # (num_blocks,)
    drawn = words(Key(seed, 0), Stream.DROPOUT, blocks, 0, 4).flatten()[:count]  # (count,)
    return (drawn >= threshold(dropout)).float() / (1 - dropout)


def threshold(share: float) -> int:
    """Return the word that a share of all words lies below."""
    return min(round(share * 2**32), _MASK)


def signed(uid: np.ndarray) -> Tensor:
    """Return unsigned 64-bit ids as an int64 tensor of the same bits, the form `words` takes."""
    return torch.from_numpy(uid.astype("<u8").view("<i8"))


def sort_key(drawn: Tensor) -> Tensor:
    """Join two 32-bit words a row, (rows, 2), into one sort key, (rows,) int64 not negative."""
    return drawn[:, 0] * 2**31 + (drawn[:, 1] >> 1)  # (rows,)


def seed_for(key: Key, stream: Stream, number: int) -> int:
    """Return a 63-bit seed for another generator, for example torch's for dropout."""
    # In Python's integers: what `words` returns for one row, a hundred times as fast.
    counter = (number & _MASK, number >> 32 & _MASK, 0, int(stream))
    low, high, _, _ = philox4x32(counter, key.words)
    return (high << 32 | low) & (2**63 - 1)
