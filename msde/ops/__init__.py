"""Sums over the atoms, edges and pairs of packed molecules, and the products around them.

Each op has one interface and several ways: C++ on a CPU, Triton on a GPU, and plain torch
(`reference`) for everything else, or everywhere with MSDE_OPS=reference. On a CPU a row of every
sum has one owner and one order: the bits depend neither on chance nor on the number of threads.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from msde import philox
from msde.ops import cpu, library, normalisation, reference, registered
from msde.ops.groups import (
    EdgeCodes,
    Edges,
    Pairs,
    PairWeights,
    group_codes,
    sort_edges,
    sort_groups,
)
from msde.ops.interpolation import Interpolation
from msde.ops.reference import (
    ACTIVATIONS,
    filter_conv,
    segment_mean,
    segment_softmax,
    segment_sum,
)
from msde.philox import Key, Stream

__all__ = [
    "ACTIVATIONS",
    "EdgeCodes",
    "Edges",
    "Interpolation",
    "PairWeights",
    "Pairs",
    "batch_norm",
    "dropout_factors",
    "edge_attention",
    "edge_geometry",
    "edge_mlp",
    "edge_norm",
    "filter_conv",
    "fourier_linear",
    "frame_mean",
    "gin_message",
    "group_codes",
    "interpolated_conv",
    "linear",
    "normals",
    "pair_attention",
    "pair_sum",
    "row_dot",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "sort_edges",
    "sort_groups",
    "sum_over_edges",
    "words",
]
_ops = registered.ops


def _fused(*tensors: Tensor | None) -> bool:
    """Say whether all of these are what the fused ops take: of one precision, on one device."""
    first, *rest = [tensor for tensor in tensors if tensor is not None]
    if first.dtype not in library.SUFFIXES:
        return False
    if any(t.dtype != first.dtype or t.device != first.device for t in rest):
        return False
    return library.available(first.device.type)


def _fused_layer(*tensors: Tensor | None) -> bool:
    """Say whether all of these are what the fused layers take: no autocast is wanted of them."""
    first = tensors[0]
    wanted = first is not None and torch.is_autocast_enabled(first.device.type)
    return not wanted and _fused(*tensors)


def _fused_on_cpu(*tensors: Tensor | None) -> bool:
    """Say whether all of these are what the layers take that are left to torch on a GPU."""
    first = tensors[0]
    return first is not None and first.is_cpu and _fused_layer(*tensors)


def _of_pairs(pairs: Pairs) -> tuple[Tensor, ...]:
    return pairs.index, pairs.ptr, pairs.pair_ptr, pairs.graph


def _of_edges(edges: Edges) -> tuple[Tensor, ...]:
    return edges.index, edges.row_ptr, edges.ptr, edges.reverse


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """Return activation(x weight^T + bias) or x weight^T + bias + plus.

    On CPUs by own code where that is faster than torch's.

    Args:
        x: (..., inputs), or (channels, rows, inputs) for weights of channels, which may share
            (rows, inputs). Autocast is left to torch.
        weight: (outputs, inputs) or (channels, outputs, inputs).
        bias: (outputs,) or (channels, outputs).
        activation: one of `reference.ACTIVATIONS`; not together with `plus`.
        plus: of the result's shape.

    Returns:
        (..., outputs) or (channels, rows, outputs).

    Raises:
        ValueError: there are both an activation and `plus`.
    """
    if not (activation is None or plus is None):
        raise ValueError(f"a layer has the activation {activation} or something to add, not both")
    # What does not fit is left to torch, which says so.
    fits = x.dim() > 1 and weight.dim() > 1 and x.shape[-1] == weight.shape[-1]
    fits = fits and (bias is None or bias.shape == weight.shape[:-1])
    if weight.dim() == 3:
        fits = fits and (x.dim() == 2 or x.shape[:-2] == weight.shape[:1])
    flat = x.dim() == 2 or weight.dim() == 3
    if plus is not None:
        fits = fits and flat and plus.shape == (*weight.shape[:-2], x.shape[-2], weight.shape[-2])
    if not (fits and library.own_products() and _fused_on_cpu(x, weight, bias, plus)):
        return reference.linear(x, weight, bias, activation, plus)
    if flat:
        return _ops.linear(x, weight, bias, activation, plus)[0]
    y = _ops.linear(x.flatten(0, -2), weight, bias, activation, None)[0]
    return y.unflatten(0, x.shape[:-1])


def batch_norm(
    x: Tensor, norm: nn.BatchNorm1d, relu: bool = False, counted: Tensor | None = None
) -> Tensor:
    """Return norm(x), (rows, width), and relu of it if that is asked for.

    Fewer than two rows have no statistics, and the running ones are used.

    Args:
        counted: () how many rows, the first ones, count in statistics; None means all.
    """
    by_torch = not norm.training or len(x) < 2 or (x.is_cpu and counted is not None)
    if not by_torch and _fused_layer(x, norm.weight):
        y, mean, variance = _ops.batch_norm(x, norm.weight, norm.bias, relu, norm.eps, counted)
        normalisation.update_statistics(
            norm, mean, variance, len(x) if counted is None else counted
        )
        return y
    return normalisation.batch_norm(x, norm, relu, counted)


def fourier_linear(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a linear map of `reference.fourier_features` of scalars, without keeping them.

    Args:
        v: (rows, scalars).
        frequency: (num_frequencies,).
        weight, bias: (outputs, scalars * 2 * num_frequencies) and (outputs,).
    """
    if not v.requires_grad and _fused_on_cpu(v, frequency, weight, bias):
        return _ops.fourier_linear(v, frequency, weight, bias)
    return reference.fourier_linear(v, frequency, weight, bias)


def words(
    key: Key, stream: Stream, uid: Tensor, item: Tensor | None = None, count: int = 1
) -> Tensor:
    """Return what `philox.words` draws, (rows, count) int64, to the bit."""
    if library.available(uid.device.type):
        return _ops.words(uid, item, count, int(stream), key.words)
    return philox.words(key, stream, uid, 0 if item is None else item, count)


def normals(key: Key, stream: Stream, uid: Tensor, item: Tensor, count: int) -> Tensor:
    """Return what `philox.normal` draws, but for rounding."""
    if library.available(uid.device.type):
        return _ops.normals(uid, item, count, int(stream), key.words)
    return philox.normal(key, stream, uid, item, count)


def dropout_factors(shape: tuple[int, ...], dropout: float, like: Tensor) -> Tensor:
    """Draw what dropout multiplies by: 0, or 1 / (1 - dropout).

    torch's generator gives the seed; on a CPU the rest does not depend on who computes it.
    """
    if not like.is_cpu or torch.compiler.is_compiling():
        return like.new_empty(shape).bernoulli_(1 - dropout).div_(1 - dropout)
    draw = cpu if library.available() else philox
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return draw.dropout_factors(seed, math.prod(shape), dropout).view(shape).to(like.dtype)


def edge_geometry(
    pos: Tensor, index: Tensor, collinear: float, epsilon: float
) -> tuple[Tensor, ...] | None:
    """Return what `geometry.edge_geometry` says, or None: then it has to be made by torch.

    That is so where positions need gradients.
    """
    if pos.requires_grad or not _fused_layer(pos):
        return None
    return _ops.edge_geometry(pos, index, collinear, epsilon)


def frame_mean(b: Tensor, frames: Tensor, edges: Edges) -> Tensor:
    """Return the mean over the edges into each atom of sum_k b_k frame_k, (num_atoms, 3).

    Args:
        b: (num_edges, 3).
        frames: (num_edges, 3, 3), of the dtype of b.
    """
    if not frames.requires_grad and _fused_layer(b, frames):
        return _ops.frame_mean(b, frames, edges.row_ptr)
    return reference.frame_mean(b, frames, edges)


def interpolated_conv(x: Tensor, table: Tensor, at: Interpolation, pairs: Pairs) -> Tensor:
    """Return `filter_conv(x, at(table), pairs.index)` without making the filters of all pairs.

    Args:
        x: (num_atoms, num_filters).
        table: (num_rows, num_filters), of the dtype of x.
        at: where between the rows of the table each pair's filter stands.
    """
    if _fused(x, table, at.weight):
        knots = (at.first, at.weight, at.order, at.cell_ptr)
        return _ops.interpolated_conv(x, table, *knots, *_of_pairs(pairs))
    return filter_conv(x, at(table).to(x.dtype), pairs.index)


def pair_sum(weight: PairWeights, x: Tensor) -> Tensor:
    """Return y_ci = sum over pairs (i, j) of weight_pc x_cj, each pair counting both ways.

    Args:
        weight: of the dtype of x.
        x: (channels, num_atoms, width), like the result.
    """
    if _fused(weight.packed, x):
        return _ops.pair_sum(weight.packed, x, *_of_pairs(weight.pairs))
    return reference.pair_sum(weight, x)


def pair_attention(q: Tensor, k: Tensor, chunk: int, pairs: Pairs) -> Tensor:
    """Return the mean of tanh(q_i . k_j / sqrt(chunk)) over heads and both directions of a pair.

    Args:
        q, k: (channels, num_atoms, heads * chunk).

    Returns:
        (num_pairs, channels).
    """
    if _fused(q, k):
        return _ops.pair_attention(q, k, chunk, *_of_pairs(pairs))
    return reference.pair_attention(q, k, chunk, pairs)


def sum_over_edges(x: Tensor, edges: Edges) -> Tensor:
    """Return the sum of x, (num_atoms, width), over the neighbours of each atom."""
    if _fused(x):
        return _ops.sum_over_edges(x, edges.index, edges.row_ptr)
    return reference.sum_over_edges(x, edges.index)


def gin_message(x: Tensor, table: Tensor, eps: Tensor, codes: EdgeCodes, edges: Edges) -> Tensor:
    """Return y_i = (1 + eps) x_i + sum over edges j -> i of relu(x_j + table[code]).

    Args:
        x: (num_atoms, width), like the result.
        table: (codes, width) one row for each kind of bond.
        eps: (1,).
        codes: the row of each edge.
    """
    if _fused(x, table, eps):
        kinds = (codes.code, codes.ptr, codes.order)
        return _ops.gin_message(x, table, eps, *kinds, edges.index, edges.row_ptr)
    return reference.gin_message(x, table, eps, codes, edges)


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, keep: Tensor | None, edges: Edges, num_heads: int
) -> Tensor:
    """Return multi-head attention of each atom over the edges into it, (num_atoms, width).

    y_i = sum over edges j -> i of keep * softmax(q_i . (k_j + e_ij) / sqrt(head_dim)) (v_j + e_ij)

    Args:
        q, k, v: (num_atoms, width), the heads one after another.
        e: (num_edges, width).
        keep: (num_edges, num_heads) dropout's factor of each attention weight, or None.
    """
    if _fused(q, k, v, e, keep):
        return _ops.edge_attention(q, k, v, e, keep, num_heads, *_of_edges(edges))[0]
    return reference.edge_attention(q, k, v, e, keep, edges, num_heads)


def edge_mlp(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Edges,
    activation: str,
    edge_attr: Tensor | None = None,
    edge_weight: Tensor | None = None,
) -> Tensor:
    """Return weight activation(a_source + b_target [+ edge_weight edge_attr]) + bias for each edge.

    Nothing of the hidden layer's size at an edge is kept for the backward pass.

    Args:
        a, b: (num_atoms, width) what the source and the target contribute.
        weight, bias: (outputs, width) and (outputs,).
        activation: "relu" or "silu".
        edge_attr, edge_weight: (num_edges, inputs) and (width, inputs), or neither.

    Returns:
        (num_edges, outputs) in the dtype of the weights.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        edge_attr = None if edge_attr is None else edge_attr.to(weight.dtype)
        if not _fused(a, b, weight, bias, edge_attr, edge_weight):
            return reference.edge_mlp(a, b, weight, bias, edges, activation, edge_attr, edge_weight)
        return _ops.edge_mlp(
            a, b, edge_attr, edge_weight, weight, bias, activation, *_of_edges(edges)
        )


def edge_norm(a: Tensor, b: Tensor, norm: nn.BatchNorm1d, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return a', b' with a'_source + b'_target = norm(a_source + b_target) for every edge.

    Normalising is an affine map, so it can be made at the atoms. The running statistics are updated
    as BatchNorm1d does. With fewer than two edges there are no statistics of the batch, and the
    running ones are used.

    Args:
        a, b: (num_atoms, width) what the source and the target contribute.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(norm.weight.dtype), b.to(norm.weight.dtype)
        if edges.counted is None and _fused_on_cpu(a, b, norm.weight):
            return normalisation.edge_norm(a, b, norm, edges, _ops.edge_norm)
        normalised = functools.partial(
            normalisation.normalised_over_edges,
            sum_of_neighbours=lambda x: sum_over_edges(x, edges),
            counted=edges.counted,
        )
        return normalisation.edge_norm(a, b, norm, edges, normalised)


def row_dot(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Return the scalar products of each row of x with some rows of y, (rows, count).

    Args:
        x: (rows, width).
        y: (others, width).
        at: (rows, count) which rows of y.
    """
    if x.shape[-1] == y.shape[-1] and len(x) == len(at) and _fused_on_cpu(x, y):
        return _ops.row_dot(x, y, at)
    return reference.row_dot(x, y, at)
