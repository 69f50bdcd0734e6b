"""Sums over the atoms, edges and pairs of packed molecules."""

from msde.ops.reference import (
    Interpolation,
    edge_mlp,
    edge_norm,
    filter_conv,
    segment_mean,
    segment_softmax,
    segment_sum,
)

__all__ = [
    "Interpolation",
    "edge_mlp",
    "edge_norm",
    "filter_conv",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
]
