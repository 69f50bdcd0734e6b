"""The Triton backend: kernels for GPUs, a module for each op that has any.

One program owns each row of a result and adds in a fixed order; a sum over all edges or rows is
made in PARTS, which are added up afterwards. So there are no atomic additions, and results repeat
to the bit. Formulas stand in `csrc`, which the kernels' names follow. Sums are made in float32 or
wider. Scales are constants, because Triton passes numbers as float32.
"""

from __future__ import annotations

import importlib
from typing import Any

PARTS = 64
TILE = 32  # rows, edges or pairs of one program
BLOCK = 64  # columns of one program


def kernels(op: str) -> Any:
    """Return the kernels of an op, imported at their first launch: Triton may be missing."""
    return importlib.import_module(f"msde.ops.triton.{op}")


def cdiv(number: int, size: int) -> int:
    """Return how many pieces of a size it takes to cover a number."""
    return -(-number // size)


def power_of_2(number: int) -> int:
    """Return the least power of two that is not below a number: the length of a Triton vector."""
    return 1 << max(0, number - 1).bit_length()


def rows_at_once(block: int) -> int:
    """Return how many whole rows, of a power of two of numbers, a program's registers hold."""
    return max(1, min(8, 2048 // block))


def warps(number: int) -> int:
    """Return how many warps, of 32 threads, a program that works on so many numbers can use.

    Not more than the four that Triton takes by default.
    """
    return min(4, max(1, number // 32))
