"""Sums over the atoms, edges and pairs of packed molecules."""

from msde.ops.reference import (
    edge_norm_project,
    filter_conv,
    segment_mean,
    segment_softmax,
    segment_sum,
)

__all__ = ["edge_norm_project", "filter_conv", "segment_mean", "segment_softmax", "segment_sum"]
