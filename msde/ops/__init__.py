"""Sums over the atoms, edges and pairs of packed molecules, and the layers around them.

A module for each op: its interface, the op in plain torch, its gradient, and its launches in C++
(CPU) and Triton (GPU). MSDE_OPS=reference leaves everything to plain torch. On a CPU a row of
every sum is made by one thread in one order: the bits depend neither on chance nor on the number
of threads.
"""

from msde.ops.all_pairs import all_pairs, all_pairs_fits
from msde.ops.edge_attention import edge_attention
from msde.ops.edge_mlp import edge_mlp
from msde.ops.filters import Interpolation, filter_conv, interpolated_conv
from msde.ops.fourier import fourier_linear
from msde.ops.frames import edge_geometry, frame_mean
from msde.ops.graphs import (
    EdgeCodes,
    Edges,
    Pairs,
    PairWeights,
    group_codes,
    sort_edges,
    sort_groups,
)
from msde.ops.linear import ACTIVATIONS, linear, row_dot
from msde.ops.messages import gin_message, sum_over_edges
from msde.ops.noise import dropout_factors, normals, words
from msde.ops.norms import batch_norm, edge_norm
from msde.ops.pairs import pair_attention, pair_sum
from msde.ops.segments import segment_mean, segment_softmax, segment_sum

__all__ = [
    "ACTIVATIONS",
    "EdgeCodes",
    "Edges",
    "Interpolation",
    "PairWeights",
    "Pairs",
    "all_pairs",
    "all_pairs_fits",
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
