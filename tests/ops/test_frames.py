"""Frames of edges."""

import pytest
import torch

from fixtures.ops import edges_of, sizes_of_all_kinds
from fixtures.triton import TRITONS, use_triton
from msde import ops


@pytest.mark.parametrize("by", ["C++", "Triton"])
@pytest.mark.parametrize("collinear", [0.0, 1e-4])
@sizes_of_all_kinds
def test_edge_geometry(gpu, fused, monkeypatch, sizes, collinear, by):
    with torch.device(TRITONS if by == "Triton" else "cpu"):
        edges = edges_of(sizes, share=1)
        pos = torch.randn(sum(sizes), 3, dtype=torch.float64)
    if by == "Triton":
        use_triton(gpu, monkeypatch)
    found = ops.edge_geometry(pos, edges.index, collinear)
    turned = ops.edge_geometry(pos, edges.index.flip(0), collinear)
    broken = ops.edge_geometry(pos * torch.nan, edges.index, collinear)
    monkeypatch.setenv("MSDE_OPS", "reference")
    expected = ops.edge_geometry(pos, edges.index, collinear)
    for ours, theirs, nothing in zip(found, expected, broken, strict=True):
        assert torch.allclose(ours, theirs, 1e-7, 1e-7)
        assert nothing.isnan().all()
    assert torch.equal(found.frames[:, :2], -turned.frames[:, :2])  # to the bit
