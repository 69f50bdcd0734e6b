"""The ops on CUDA tensors: memory for the results, and the Triton kernels that fill it.

Everything here stays on the device and waits for nothing. Interfaces are those of `cpu`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor, empty_like

from msde.ops.gpu_layers import batch_norm as batch_norm
from msde.ops.gpu_layers import batch_norm_grad as batch_norm_grad
from msde.ops.gpu_layers import edge_geometry as edge_geometry
from msde.ops.gpu_layers import frame_mean as frame_mean
from msde.ops.gpu_layers import frame_mean_grad as frame_mean_grad
from msde.ops.library import contiguous
from msde.ops.triton import edge_mlp as triton_edge_mlp
from msde.ops.triton import kernels
from msde.ops.triton import noise as triton_noise

TILE = 32  # edges or pairs taken together
BLOCK = 64  # of the hidden layer of the edge MLP
PARTS = 64  # into which sums over all edges are cut
COUNTERS = 256  # of random numbers taken together


def _block(width: int) -> int:
    return triton.next_power_of_2(width)


def _counters(
    uid: Tensor, count: int, stream: int, key: Sequence[int]
) -> tuple[tuple[int], list[int]]:
    """Return the grid of the kernels of random numbers, and what they have to know."""
    blocks = triton.cdiv(count, 4)
    # The key's words as numbers of 32 bits with a sign, which is what Triton takes.
    low, high = [(word ^ 1 << 31) - (1 << 31) for word in key]
    counters = len(uid) * blocks
    return (triton.cdiv(counters, COUNTERS),), [counters, blocks, count, stream, low, high]


def words(uid: Tensor, item: Tensor | None, count: int, stream: int, key: Sequence[int]) -> Tensor:
    """See `philox.words`; `key` are its two words."""
    uid, item = contiguous(uid, item)
    out = uid.new_empty(len(uid), count)
    grid, facts = _counters(uid, count, stream, key)
    has_item = item is not None
    triton_noise.words[grid](uid, item if has_item else uid, out, *facts, has_item, COUNTERS)
    return out


def normals(uid: Tensor, item: Tensor, count: int, stream: int, key: Sequence[int]) -> Tensor:
    """See `philox.normal`; `key` are its two words."""
    uid, item = contiguous(uid, item)
    out = uid.new_empty(len(uid), count, dtype=torch.float32)
    grid, facts = _counters(uid, count, stream, key)
    triton_noise.normals[grid](uid, item, out, *facts, COUNTERS)
    return out


def interpolated_conv(
    x: Tensor, table: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    """Convolve x, (num_atoms, width), with filters in a table, (num_rows, width)."""
    x, table = contiguous(x, table)
    (atoms, width), out = x.shape, empty_like(x)
    kernels.interpolated_conv[(atoms,)](
        x, table, first, weight, graph, ptr, pair_ptr, out, width, _block(width)
    )
    return out


def interpolated_table_grad(
    x: Tensor, g: Tensor, first: Tensor, weight: Tensor, order: Tensor, cell_ptr: Tensor,
    index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient of the table, (num_rows, width)."""
    x, g = contiguous(x, g)
    cells, width = len(cell_ptr) - 1, x.shape[1]
    parts = x.new_empty(cells, 4, width)
    kernels.interpolated_table_grad[(cells,)](
        x, g, weight, index, order, cell_ptr, parts, index.shape[1], width, _block(width)
    )
    out = x.new_zeros(cells + 3, width)
    for q in range(4):
        out[q : q + cells] += parts[:, q]
    return out


def pair_sum(
    weight: Tensor, x: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Sum over pairs: weight (num_pairs, channels), x (channels, num_atoms, width)."""
    weight, x = contiguous(weight, x)
    (channels, atoms, width), out = x.shape, empty_like(x)
    kernels.pair_sum[(atoms, channels)](
        weight, x, graph, ptr, pair_ptr, out, atoms, channels, width, _block(width)
    )
    return out


def pair_dot(
    x: Tensor, g: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Return the gradient of the weights of `pair_sum`, (num_pairs, channels)."""
    x, g = contiguous(x, g)
    (channels, atoms, width), num_pairs = x.shape, index.shape[1]
    out = x.new_empty(num_pairs, channels)
    if num_pairs:
        kernels.pair_dot[(triton.cdiv(num_pairs, TILE), channels)](
            x, g, index, out, num_pairs, atoms, channels, width, _block(width), TILE
        )
    return out


def pair_attention(
    q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Return symmetric attention, (num_pairs, channels)."""
    q, k = contiguous(q, k)
    (channels, atoms, width), num_pairs = q.shape, index.shape[1]
    out = q.new_empty(num_pairs, channels)
    if num_pairs:
        kernels.pair_attention[(triton.cdiv(num_pairs, TILE), channels)](
            q, k, index, out, num_pairs, atoms, channels, 1 / math.sqrt(chunk), width // chunk,
            chunk, _block(chunk), TILE,
        )  # fmt: skip
    return out


def pair_attention_grad(
    g: Tensor, q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor,
    graph: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q and k."""
    g, q, k = contiguous(g, q, k)
    (channels, atoms, width), gq, gk = q.shape, empty_like(q), empty_like(k)
    kernels.pair_attention_grad[(atoms, channels)](
        g, q, k, graph, ptr, pair_ptr, gq, gk, atoms, channels, 1 / math.sqrt(chunk),
        width // chunk, chunk, _block(chunk),
    )  # fmt: skip
    return gq, gk


def sum_over_edges(x: Tensor, index: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum x, (num_atoms, width), over each atom's neighbours."""
    x = x.contiguous()
    (atoms, width), out = x.shape, empty_like(x)
    kernels.sum_over_edges[(atoms,)](x, row_ptr, index, out, width, _block(width))
    return out


def gin_message(
    x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor, code_order: Tensor,
    index: Tensor, row_ptr: Tensor,
) -> Tensor:  # fmt: skip
    """Return (1 + eps) x + sum of relu(x_source + table[code]), (num_atoms, width)."""
    x, table = contiguous(x, table)
    (atoms, width), out = x.shape, empty_like(x)
    kernels.gin_message[(atoms,)](x, table, eps, code, row_ptr, index, out, width, _block(width))
    return out


def gin_message_grad(
    g: Tensor, x: Tensor, table: Tensor, eps: Tensor, code: Tensor, code_ptr: Tensor,
    code_order: Tensor, index: Tensor, row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, table and eps."""
    g, x, table = contiguous(g, x, table)
    (atoms, width), codes, gx = x.shape, len(table), empty_like(x)
    block = _block(width)
    kernels.gin_message_grad[(atoms,)](g, x, table, eps, code, row_ptr, index, gx, width, block)
    parts = x.new_empty(codes, PARTS, width)
    kernels.gin_table_grad[(codes, PARTS)](
        g, x, table, code_order, code_ptr, index[0], index[1], parts, width, PARTS, block
    )
    return gx, parts.sum(1), (g * x).sum().view(1)


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None, heads: int,
    index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the attended values, (num_atoms, width), and the attention, (num_edges, heads)."""
    q, k, v, edge = contiguous(q, k, v, edge)
    (atoms, width), out, alpha = q.shape, empty_like(q), q.new_empty(len(edge), heads)
    factor = q if keep is None else keep.contiguous()
    scale = 1 / math.sqrt(width // heads)
    kernels.edge_attention[(atoms, heads)](
        q, k, v, edge, factor, row_ptr, index, alpha, out, scale, keep is not None, heads,
        width // heads, _block(width // heads),
    )  # fmt: skip
    return out, alpha


def edge_attention_grad(
    g: Tensor, alpha: Tensor, q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None,
    heads: int, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k, v and edge."""
    g, q, k, v, edge = contiguous(g, q, k, v, edge)
    (atoms, width), slopes = q.shape, empty_like(alpha)
    gq, gk, gv, ge = map(empty_like, (q, k, v, edge))
    factor = q if keep is None else keep.contiguous()
    sizes = (keep is not None, heads, width // heads, _block(width // heads))
    scale = 1 / math.sqrt(width // heads)
    kernels.edge_attention_grad[(atoms, heads)](
        g, q, k, v, edge, factor, alpha, row_ptr, index, gq, ge, slopes, scale, *sizes
    )
    kernels.edge_attention_source_grad[(atoms, heads)](
        g, q, factor, alpha, slopes, row_ptr, index, reverse, gk, gv, *sizes
    )
    return gq, gk, gv, ge


def _mlp(weight: Tensor, attr: Tensor | None, activation: str) -> tuple[list[int], dict[str, Any]]:
    """Return the sizes and the constants of the edge MLP's kernels."""
    (outputs, width), inputs = weight.shape, 0 if attr is None else attr.shape[1]
    blocks = {
        "silu": activation == "silu",
        "tile": TILE,
        "block": BLOCK,
        "block_inputs": max(16, _block(inputs)),
        "block_outputs": max(16, _block(outputs)),
    }
    return [width, inputs, outputs], blocks


def edge_mlp(
    a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None, weight: Tensor,
    bias: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> Tensor:  # fmt: skip
    """Return weight activation(a_source + b_target [+ attr_weight attr]) + bias for each edge."""
    a, b, weight, bias = contiguous(a, b, weight, bias)
    sizes, blocks = _mlp(weight, attr, activation)
    edges, has_attr = index.shape[1], attr is not None
    of_attr = [a, a] if attr is None or attr_weight is None else contiguous(attr, attr_weight)
    out = a.new_empty(edges, len(weight))
    if edges:
        triton_edge_mlp.edge_mlp[(triton.cdiv(edges, TILE),)](
            a, b, *of_attr, weight, bias, index[0], index[1], out, edges, *sizes,
            has_attr=has_attr, **blocks,
        )  # fmt: skip
    return out


def edge_mlp_grad(
    g: Tensor, a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None,
    weight: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of a, b, weight and, where there is one, attr and attr_weight."""
    g, a, b, weight = contiguous(g, a, b, weight)
    sizes, blocks = _mlp(weight, attr, activation)
    (width, inputs, outputs), edges, has_attr = sizes, index.shape[1], attr is not None
    of_attr = [a, a] if attr is None or attr_weight is None else contiguous(attr, attr_weight)
    inner = (g, a, b, *of_attr, weight, index[0], index[1])
    across = triton.cdiv(width, BLOCK)
    ga, gb = empty_like(a), empty_like(b)
    for out, order in ((ga, reverse), (gb, torch.arange(edges, device=a.device))):
        triton_edge_mlp.edge_mlp_atom_grad[(len(a), across)](
            *inner, row_ptr, order, out, *sizes, has_attr=has_attr, **blocks
        )
    parts, attr_parts = a.new_empty(PARTS, outputs, width), a.new_empty(PARTS, width, inputs)
    per_part = max(1, triton.cdiv(edges, PARTS))
    triton_edge_mlp.edge_mlp_weight_grad[(PARTS, across)](
        *inner, parts, attr_parts, edges, per_part, *sizes, has_attr=has_attr, **blocks
    )
    if attr is None:
        return [ga, gb, parts.sum(0)]
    g_attr = empty_like(of_attr[0])
    if edges:
        triton_edge_mlp.edge_mlp_attr_grad[(triton.cdiv(edges, TILE),)](
            *inner, g_attr, edges, *sizes, **blocks
        )
    return [ga, gb, parts.sum(0), g_attr, attr_parts.sum(0)]
