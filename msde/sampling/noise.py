"""The noise of samplers, keyed by molecule."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from msde import ops
from msde.philox import Key, Stream


def keyed_noise(seed: int, uid: Tensor, item: Tensor, width: int) -> Callable[[int], Tensor]:
    """Return noise(k), the standard normals of draw k, (rows, width) float32.

    A row is a function of seed, k and its own uid and item, whatever the other rows are.

    Args:
        seed: 64 bits.
        uid: (rows,) int64 id of the molecule of each row.
        item: (rows,) int64 below 2^32: the atom within the molecule; for several samples of a
            molecule add another multiple of 2^16 for each of them.
        width: numbers a row.
    """
    return lambda draw: ops.normals(Key(seed, draw), Stream.SAMPLING, uid, item, width)
