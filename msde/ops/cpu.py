"""The ops on CPU tensors: memory for the results, and the C++ functions that fill it.

Formulas stand in `csrc`, interfaces in `msde.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, empty_like
from torch import get_num_threads as threads

from msde import philox
from msde.ops.cpu_layers import CODES, PARTS
from msde.ops.cpu_layers import batch_norm as batch_norm
from msde.ops.cpu_layers import batch_norm_grad as batch_norm_grad
from msde.ops.cpu_layers import fourier_linear as fourier_linear
from msde.ops.cpu_layers import fourier_linear_grad as fourier_linear_grad
from msde.ops.cpu_layers import linear as linear
from msde.ops.cpu_layers import linear_grad as linear_grad
from msde.ops.cpu_layers import row_dot as row_dot
from msde.ops.cpu_layers import row_dot_grad as row_dot_grad
from msde.ops.library import call, contiguous
from msde.philox import Key, Stream


def words(uid: Tensor, item: Tensor | None, count: int, stream: int, key: Sequence[int]) -> Tensor:
    """See `philox.words`; `key` are its two words."""
    low, high = key
    return philox.words(
        Key(high << 32 | low, 0), Stream(stream), uid, 0 if item is None else item, count
    )


def normals(uid: Tensor, item: Tensor, count: int, stream: int, key: Sequence[int]) -> Tensor:
    """See `philox.normal`; `key` are its two words."""
    uid, item = contiguous(uid, item)
    out = uid.new_empty(len(uid), count, dtype=torch.float32)
    call("normals", uid, item, len(uid), count, stream, *key, out, threads(), dtype=torch.float32)
    return out


def dropout_factors(seed: int, count: int, dropout: float) -> Tensor:
    """See `philox.dropout_factors`."""
    out = torch.empty(count)
    call(
        "dropout_factors", count, int(Stream.DROPOUT), *Key(seed, 0).words,
        philox.threshold(dropout), 1 / (1 - dropout), out, threads(), dtype=torch.float32,
    )  # fmt: skip
    return out


def edge_norm(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float, index: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a and b so scaled that a_source + b_target is normalised over the edges.

    And the means of both over the edges, (2, width), and the biased variance of their sum.
    """
    a, b, weight, bias = contiguous(a, b, weight, bias)
    atoms, width = a.shape
    normed_a, normed_b, variance = map(empty_like, (a, b, weight))
    means, parts = a.new_empty(2, width), a.new_empty(PARTS, 2, width)
    call(
        "edge_norm", a, b, weight, bias, row_ptr, index, atoms, width, eps, parts, PARTS, means,
        variance, normed_a, normed_b, threads(), dtype=a.dtype,
    )  # fmt: skip
    return normed_a, normed_b, means, variance


def edge_norm_grad(
    of_a: Tensor, of_b: Tensor, a: Tensor, b: Tensor, weight: Tensor, eps: float, index: Tensor,
    row_ptr: Tensor, means: Tensor, variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of a, b, weight and bias."""
    of_a, of_b, a, b, weight = contiguous(of_a, of_b, a, b, weight)
    atoms, width = a.shape
    ga, gb, g_weight, g_bias = map(empty_like, (a, b, weight, weight))
    sums, parts = a.new_empty(2, width), a.new_empty(PARTS, 2, width)
    call(
        "edge_norm_grad", of_a, of_b, a, b, weight, row_ptr, index, atoms, width, eps, means,
        variance, parts, PARTS, sums, ga, gb, g_weight, g_bias, threads(), dtype=a.dtype,
    )  # fmt: skip
    return ga, gb, g_weight, g_bias


def sort_groups(key: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """See `groups.sort_groups`."""
    key = key.contiguous()
    ptr, order = key.new_empty(num_groups + 1), empty_like(key)
    call("group", key, len(key), num_groups, ptr, order)
    return ptr, order


def edge_geometry(
    pos: Tensor, index: Tensor, collinear: float, epsilon: float
) -> tuple[Tensor, ...]:
    """See `geometry.edge_geometry`."""
    pos, index = contiguous(pos, index)
    num_edges = index.shape[1]
    shapes = ((num_edges, 3, 3), (num_edges, 2), (num_edges, 2), (num_edges, 2), (num_edges,))
    found = tuple(map(pos.new_empty, shapes))
    call(
        "edge_geometry", pos, index, num_edges, collinear, epsilon, *found, threads(),
        dtype=pos.dtype,
    )  # fmt: skip
    return found


def frame_mean(b: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    """Return the mean of b, (num_edges, 3), along frames over the edges into each atom."""
    b, frames = contiguous(b, frames)
    atoms = len(row_ptr) - 1
    y = b.new_empty(atoms, 3)
    call("frame_mean", b, frames, row_ptr, atoms, y, threads(), dtype=b.dtype)
    return y


def frame_mean_grad(g: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    """Return the gradient of b, (num_edges, 3)."""
    g, frames = contiguous(g, frames)
    gb = g.new_empty(len(frames), 3)
    call("frame_mean_grad", g, frames, row_ptr, len(g), gb, threads(), dtype=g.dtype)
    return gb


def interpolated_conv(
    x: Tensor, table: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    """Convolve x, (num_atoms, width), with filters in a table, (num_rows, width)."""
    x, table = contiguous(x, table)
    out = empty_like(x)
    pairs = (index, ptr, pair_ptr, len(ptr) - 1)
    call(
        "interpolated_conv", x, table, first, weight, *pairs, out, x.shape[1], threads(),
        dtype=x.dtype,
    )  # fmt: skip
    return out


def interpolated_table_grad(
    x: Tensor, g: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient of the table, (num_rows, width)."""
    x, g = contiguous(x, g)
    cells, width = len(cell_ptr) - 1, x.shape[1]
    parts, out = x.new_empty(cells, 4, width), x.new_empty(cells + 3, width)
    pairs = (index, ptr, pair_ptr, len(ptr) - 1)
    call(
        "interpolated_table_grad", x, g, first, weight, *pairs, order, cell_ptr, parts, out,
        cells, width, threads(), dtype=x.dtype,
    )  # fmt: skip
    return out


def pair_sum(
    weight: Tensor, x: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Sum over pairs: weight (num_pairs, channels), x (channels, num_atoms, width)."""
    weight, x = contiguous(weight, x)
    out = empty_like(x)
    call(
        "pair_sum", weight, x, index, ptr, pair_ptr, len(ptr) - 1, out, len(x), x.shape[2],
        threads(), dtype=x.dtype,
    )  # fmt: skip
    return out


def pair_dot(
    x: Tensor, g: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Return the gradient of the weights of `pair_sum`, (num_pairs, channels)."""
    x, g = contiguous(x, g)
    out = x.new_empty(index.shape[1], len(x))
    call(
        "pair_dot", x, g, index, ptr, pair_ptr, len(ptr) - 1, out, len(x), x.shape[2], threads(),
        dtype=x.dtype,
    )  # fmt: skip
    return out


def pair_attention(
    q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Return symmetric attention, (num_pairs, channels)."""
    q, k = contiguous(q, k)
    out = q.new_empty(index.shape[1], len(q))
    call(
        "pair_attention", q, k, index, ptr, pair_ptr, len(ptr) - 1, out, len(q), q.shape[2], chunk,
        threads(), dtype=q.dtype,
    )  # fmt: skip
    return out


def pair_attention_grad(
    g: Tensor, q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor,
    graph: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q and k."""
    g, q, k = contiguous(g, q, k)
    gq, gk = empty_like(q), empty_like(k)
    call(
        "pair_attention_grad", g, q, k, index, ptr, pair_ptr, len(ptr) - 1, gq, gk, len(q),
        q.shape[2], chunk, threads(), dtype=q.dtype,
    )  # fmt: skip
    return gq, gk


def sum_over_edges(x: Tensor, index: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum x, (num_atoms, width), over each atom's neighbours."""
    (x,) = contiguous(x)
    out = empty_like(x)
    call(
        "sum_over_edges", x, row_ptr, index, len(row_ptr) - 1, out, x.shape[1], threads(),
        dtype=x.dtype,
    )  # fmt: skip
    return out


def gin_message(
    x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor, code_order: Tensor,
    index: Tensor, row_ptr: Tensor,
) -> Tensor:  # fmt: skip
    """Return (1 + eps) x + sum of relu(x_source + table[code]), (num_atoms, width)."""
    x, table = contiguous(x, table)
    out = empty_like(x)
    call(
        "gin_message", x, table, eps, row_ptr, index, len(row_ptr) - 1, code, out, x.shape[1],
        threads(), dtype=x.dtype,
    )  # fmt: skip
    return out


def gin_message_grad(
    g: Tensor, x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor,
    code_order: Tensor, index: Tensor, row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, table and eps."""
    g, x, table = contiguous(g, x, table)
    codes, width = table.shape
    gx, g_table, g_eps = map(empty_like, (x, table, eps))
    parts = x.new_empty(PARTS, table.numel() + 1)
    call(
        "gin_message_grad", g, x, table, eps, row_ptr, index, len(row_ptr) - 1, code, gx, parts,
        PARTS, g_table, g_eps, codes, width, threads(), dtype=x.dtype,
    )  # fmt: skip
    return gx, g_table, g_eps


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None, heads: int,
    index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the attended values, (num_atoms, width), and the attention, (num_edges, heads)."""
    q, k, v, edge, keep = contiguous(q, k, v, edge, keep)
    out, alpha = empty_like(q), q.new_empty(len(edge), heads)
    call(
        "edge_attention", q, k, v, edge, keep, row_ptr, index, len(row_ptr) - 1, alpha, out, heads,
        q.shape[1] // heads, threads(), dtype=q.dtype,
    )  # fmt: skip
    return out, alpha


def edge_attention_grad(
    g: Tensor, alpha: Tensor, q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None,
    heads: int, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k, v and edge."""
    g, q, k, v, edge, keep = contiguous(g, q, k, v, edge, keep)
    gq, gk, gv, ge = map(empty_like, (q, k, v, edge))
    call(
        "edge_attention_grad", g, q, k, v, edge, keep, alpha, row_ptr, index, len(row_ptr) - 1, ptr,
        len(ptr) - 1, gq, gk, gv, ge, heads, q.shape[1] // heads, threads(), dtype=q.dtype,
    )  # fmt: skip
    return gq, gk, gv, ge


def edge_mlp(
    a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None, weight: Tensor,
    bias: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> Tensor:  # fmt: skip
    """Return weight activation(a_source + b_target [+ attr_weight attr]) + bias for each edge."""
    a, b, attr, attr_weight, weight, bias = contiguous(a, b, attr, attr_weight, weight, bias)
    outputs, width = weight.shape
    inputs = 0 if attr is None else attr.shape[1]
    out = a.new_empty(index.shape[1], outputs)
    call(
        "edge_mlp", a, b, attr, attr_weight, weight, bias, index, width, inputs, outputs,
        CODES[activation], len(out), out, threads(), dtype=a.dtype,
    )  # fmt: skip
    return out


def edge_mlp_grad(
    g: Tensor, a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None,
    weight: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of a, b, weight and, where there is one, attr and attr_weight."""
    g, a, b, attr, attr_weight, weight = contiguous(g, a, b, attr, attr_weight, weight)
    outputs, width = weight.shape
    inputs = 0 if attr is None else attr.shape[1]
    ga, gb, g_weight = map(empty_like, (a, b, weight))
    of_attr = [] if attr is None else [empty_like(attr), empty_like(attr_weight)]
    edge_ptr = row_ptr.index_select(0, ptr)  # (num_graphs + 1,) offsets of the molecules' edges
    parts = a.new_empty(PARTS, outputs + inputs, width)
    call(
        "edge_mlp_grad", g, a, b, attr, attr_weight, weight, index, width, inputs, outputs,
        CODES[activation], index.shape[1], ptr, edge_ptr, len(ptr) - 1, ga, gb, g_weight,
        *(of_attr or (None, None)), parts, PARTS, threads(), dtype=a.dtype,
    )  # fmt: skip
    return [ga, gb, g_weight, *of_attr]
