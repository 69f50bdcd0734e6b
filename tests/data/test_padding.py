"""A padded batch has the losses, gradients and statistics of its molecules without padding."""

import numpy as np
import pytest
import torch

from fixtures.models import KINDS, NO_DROPOUT, make_small, outcome
from fixtures.molecules import SMILES, both, make_record
from msde.data.padding import round_up

OBJECTIVES = ["node_ebm_nce", "graph_ebm_nce", "info_nce"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_loss_gradient_or_statistic(kind, objective, records):
    plain, padded = both(records)
    assert padded.num_padding and padded.num_atoms > plain.num_atoms
    found = []
    for batch in (plain, padded):
        model = make_small(kind, *NO_DROPOUT, f"loss.contrastive={objective}").train()
        found.append(outcome(model, batch))
    assert found[0].keys() == found[1].keys()
    sizes = {name: expected.abs().max().item() for name, expected in found[0].items()}
    for name, expected in found[0].items():
        tolerance = 1e-4 * sizes[name] + 1e-6 * max(sizes.values())
        assert torch.allclose(found[1][name], expected, 0, tolerance), name


@pytest.mark.parametrize("smiles", [["C", "C"], ["CO", "C"], ["CCC", "O", "CC"], SMILES])
def test_padded_sizes_are_rounded_up_and_molecules_stay_in_front(smiles):
    plain, padded = both([make_record(s, line) for line, s in enumerate(smiles)])
    if plain.extended_edge_index.shape[1] < 2:
        assert not padded.num_padding
        return
    for name in ("z", "edge_index", "extended_edge_index", "pair_index"):
        size, least = (getattr(b, name).shape[-1] for b in (padded, plain))
        assert size >= least and (size == round_up(size) or name == "edge_index")
    assert padded.edge_index.shape[1] // 2 == round_up(padded.edge_index.shape[1] // 2)
    for name in ("z", "x", "pos", "pair_index", "extended_edge_index", "edge_index", "bond_pair"):
        shared = getattr(plain, name)
        count = shared.shape[-1] if "index" in name else len(shared)
        start = getattr(padded, name)
        assert torch.equal(start[..., :count] if "index" in name else start[:count], shared), name
    edges = padded.extended_edge_index
    assert padded.batch[edges].eq(padded.batch[edges[0]]).all()
    degree = torch.bincount(edges[1], minlength=len(padded.z))
    assert torch.equal(padded.extended_ptr.diff(), degree)


def test_rounded_sizes_repeat_from_batch_to_batch():
    """Of many random batches, few differ in any size."""
    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        totals = [round_up(int(size)) for size in draw.normal([3669, 34510, 25299], [44, 550, 580])]
        seen.add(tuple(totals))
    assert len(seen) <= 20


def test_rounding_wastes_little():
    for size in range(100, 20_000, 37):
        assert size <= round_up(size) <= 1.0625 * size + 1
        assert round_up(round_up(size)) == round_up(size)
