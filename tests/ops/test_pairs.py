"""Sums over pairs."""

from fixtures.ops import pairs_of, rand
from msde import ops
from msde.ops import PairWeights
from msde.ops.graphs import PaddedLayout


def test_weights_are_padded_once(monkeypatch):
    monkeypatch.setenv("MSDE_OPS", "reference")
    pairs, padded = pairs_of([3, 4]), []
    pad = PaddedLayout.pad_pairs
    monkeypatch.setattr(PaddedLayout, "pad_pairs", lambda *a: padded.append(1) or pad(*a))
    weight = PairWeights(rand(9, 2), pairs)
    for _ in range(3):
        ops.pair_sum(weight, rand(2, 7, 5))
    assert len(padded) == 1
