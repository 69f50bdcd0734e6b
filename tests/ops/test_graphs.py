"""Pairs, edges and groups of rows."""

import pytest
import torch

from fixtures.ops import edges_of, pairs_of
from msde import ops
from msde.data.ragged import complete_pairs
from msde.ops import dispatch


def test_complete_pairs():
    expected = [[1, 1, 2, 4], [2, 3, 3, 5]]
    assert pairs_of([1, 3, 2]).index.tolist() == expected
    atoms = torch.tensor([1, 3, 2])
    with torch.device("meta"):  # what torch makes by default does not matter
        assert complete_pairs(atoms, 6, 4).tolist() == expected


@pytest.mark.parametrize("key", [[], [2, 0, 2, 4, 0]])
def test_sort_groups(way, key):
    ptr, order = ops.sort_groups(torch.tensor(key, dtype=torch.int64), 5)
    assert ptr.tolist() == ([0] * 6 if not key else [0, 2, 2, 4, 4, 5])
    assert order.tolist() == ([] if not key else [1, 4, 0, 2, 3])


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_edges_know_their_reverses(way, backend, monkeypatch):
    """On a GPU, too, as the table of backends has it."""
    torch.manual_seed(0)
    whole = edges_of([9, 1, 5, 12])
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", backend)
    mixed = torch.randperm(whole.index.shape[1])
    edges, order = ops.sort_edges(whole.index[:, mixed], whole.ptr, 27)
    assert torch.equal(edges.index, whole.index) and torch.equal(edges.row_ptr, whole.row_ptr)
    assert torch.equal(mixed[order], torch.arange(len(mixed)))
    assert torch.equal(edges.index[:, edges.reverse], edges.index.flip(0))
