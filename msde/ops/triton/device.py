"""Functions that the kernels of several ops call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Return tanh(x) from exp(-2 |x|), which cannot overflow."""
    decay = tl.exp(-2 * tl.abs(x))
    size = (1 - decay) / (1 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def apply_relu(x):
    """Return relu(x)."""
    return tl.where(x < 0, 0, x)  # not maximum(x, 0), which turns NaN into 0


@triton.jit
def relu_grad(g, x):
    """Return the gradient of x from that of relu(x)."""
    return tl.where(x <= 0, 0, g)


@triton.jit
def load_row(pointer, row, f, width, block: tl.constexpr):
    """Load the columns f of a row of a matrix (rows, width)."""
    return tl.load(pointer + row * width + f, mask=f < width, other=0)


@triton.jit
def load_rows(pointer, rows, f, width, there):
    """Load the columns f of the rows that are there, (rows, columns), and zeros for the others."""
    at = rows[:, None] * width + f[None, :]
    return tl.load(pointer + at, mask=there[:, None] & (f < width)[None, :], other=0)


@triton.jit
def pair_number(i, j, first, first_pair, last):
    """Return the number of the pair of two atoms of the molecule with atoms first ... last - 1."""
    low = tl.minimum(i, j) - first
    high = tl.maximum(i, j) - first
    return first_pair + low * (2 * (last - first) - low - 1) // 2 + high - low - 1


@triton.jit
def molecule_of(graph, ptr, pair_ptr, i):
    """Return the range of atoms of the molecule of atom i, and its first pair."""
    m = tl.load(graph + i)
    return tl.load(ptr + m), tl.load(ptr + m + 1), tl.load(pair_ptr + m)
