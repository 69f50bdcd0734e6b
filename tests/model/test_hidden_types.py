"""Atom types that the network of bonds does not see, and finds from positions."""

import dataclasses

import numpy as np
import pytest
import torch

from fixtures.bonds import (
    HIDDEN_TYPES,
    LEARNT,
    batch_with_hydrogens,
    bond_model,
    geometry,
    trained,
    trained_for_types,
)
from msde.config import make_config
from msde.errors import MsdeError
from msde.evaluation.bonds import graph_smiles
from msde.model.score.bonds import HIDDEN, NearPairs, hide_types
from msde.philox import Key
from msde.sampling.bonds import BondOptions, find_bonds, find_types

SMILES = ["CC(=O)O", "c1cc[nH]c1", "N", "CCF"]


def outputs(model, batch):
    near = NearPairs.of(batch)
    x, t = torch.zeros(len(near.pair), 5), torch.ones(batch.num_graphs)
    return model.score_3d_to_2d(x, t, model.encoder_3d(batch), batch, near)


def test_only_types_of_the_chosen_molecules_are_hidden():
    batch = batch_with_hydrogens(*SMILES)
    hidden = torch.tensor([True, False, False, True])
    found = hide_types(batch, hidden)
    chosen = hidden[batch.batch]
    assert (found.x[chosen, 0] == HIDDEN).all() and (found.z[chosen] == 0).all()
    assert torch.equal(found.x[~chosen], batch.x[~chosen])
    assert torch.equal(found.z[~chosen], batch.z[~chosen])
    assert torch.equal(found.x[:, 1:], batch.x[:, 1:]) and not (batch.x[:, 0] == HIDDEN).any()


def test_the_network_sees_nothing_of_hidden_types():
    model, batch = bond_model(HIDDEN_TYPES), batch_with_hydrogens("CC(=O)O", "CCF")
    hidden = torch.tensor([True, True])
    other = dataclasses.replace(batch, z=batch.z + 1, x=batch.x + torch.eye(9).long()[0])
    for one, same in zip(
        outputs(model, hide_types(batch, hidden)), outputs(model, hide_types(other, hidden)),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(one, same)
    assert not torch.equal(outputs(model, batch)[0], outputs(model, other)[0])


def test_the_share_is_drawn_for_each_molecule_and_epoch():
    model = bond_model("model.topology.hidden_types=0.25")
    many = batch_with_hydrogens(*["C"] * 60)
    first, later = (
        model.draw_noise(dataclasses.replace(many, key=Key(0, epoch))).hidden for epoch in (0, 1)
    )
    assert 5 <= first.sum() <= 27 and not torch.equal(first, later)
    assert len(bond_model().draw_noise(many).hidden) == 0


def test_the_loss_of_types_counts_hidden_molecules_alone():
    model, batch = bond_model(HIDDEN_TYPES), batch_with_hydrogens(*SMILES)
    noise = model.draw_noise(batch)
    hidden = torch.tensor([True, False, True, False])
    noise = dataclasses.replace(noise, hidden=hidden, shifts=noise.shifts[:0])
    seen = hide_types(batch, hidden)
    of_types, _ = model.loss_3d_to_2d(model.encoder_3d(seen), seen, noise, batch.x[:, 0])
    assert torch.equal(of_types > 0, hidden)
    loss, terms = model(batch, noise)
    loss.backward()
    assert terms["3d_to_2d"][hidden].min() > 0
    assert model.score_3d_to_2d.types[1].layers[-1].weight.grad.abs().max() > 0


def test_types_and_bonds_of_a_few_molecules_are_learnt():
    model, given = trained_for_types(), [geometry(smiles) for smiles in LEARNT]
    unknown = [dataclasses.replace(g, z=np.zeros(len(g.z), int)) for g in given]
    for z, g in zip(find_types(model, unknown), given, strict=True):
        assert np.array_equal(z, g.z)
    found = list(find_bonds(model, unknown, BondOptions(types=True)))
    assert [graph_smiles(one.mol) for one in found] == LEARNT


def test_a_network_without_types_says_so():
    with pytest.raises(
        MsdeError, match="finds no atom types: its model.topology.hidden_types is 0"
    ):
        list(find_bonds(trained(), [geometry("C")], BondOptions(types=True)))


@pytest.mark.parametrize(
    ("preset", "value", "message"),
    [("bonds", 1.5, r"hidden_types must be in \[0, 1\]"), ("base", 0.5, "needs bonds=one_hot")],
)
def test_settings_that_do_not_fit_are_named(preset, value, message):
    with pytest.raises(MsdeError, match=message):
        make_config(preset, overrides=[f"model.topology.hidden_types={value}"])
