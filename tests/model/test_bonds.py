"""The network of bonds: symmetries, Bayes' rule, its loss, and the noise of its positions."""

import dataclasses
import math

import pytest
import torch

from fixtures.bonds import LEARNT, batch_with_hydrogens, bond_model, trained
from fixtures.molecules import batch_of, both
from msde.config import make_config
from msde.errors import MsdeError
from msde.model.denoising import bond_loss
from msde.model.molecule_sde import adjacency
from msde.model.score.bonds import CLASSES, CUTOFF, NearPairs
from msde.philox import Key

SMILES = ["CC(=O)O", "c1cc[nH]c1", "N", "C[N+](C)(C)C", "C"]


@pytest.fixture(scope="module")
def molecules():
    return batch_with_hydrogens(*SMILES)


def logits(model, batch, t=0.5, x=None):
    near = NearPairs.of(batch)
    if x is None:
        x = 0.3 * torch.sin(torch.arange(len(near.pair) * 5.0)).view(-1, 5)
    times = torch.full((batch.num_graphs,), t)
    network = model.score_3d_to_2d
    return network(x, times, model.encoder_3d(batch), batch, near)[0]


def test_rotations_shifts_and_mirror_images_change_nothing(molecules):
    model = bond_model()
    expected = logits(model, molecules)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    for rotation in (q, -q, torch.diag(torch.tensor([1.0, 1.0, -1.0]))):
        moved = dataclasses.replace(molecules, pos=molecules.pos @ rotation.T + 2.0)
        assert (logits(model, moved) - expected).abs().max() < 2e-4 * expected.abs().max()


def test_an_angle_changes_the_logits_of_a_bond_though_no_distance_of_it_changes(molecules):
    water = batch_with_hydrogens("O")
    bent = water.pos.clone()
    bent[2] = bent[0] - (bent[1] - bent[0])  # linear
    model = bond_model()
    before, after = logits(model, water), logits(model, dataclasses.replace(water, pos=bent))
    assert (before[0] - after[0]).abs().max() > 1e-3


def test_a_molecule_does_not_see_its_batch_mates(molecules):
    model = bond_model()
    x = torch.zeros(len(NearPairs.of(molecules).pair), 5)
    together = logits(model, molecules, x=x)
    graph = molecules.pair_batch[NearPairs.of(molecules).pair]
    for number, smiles in enumerate(SMILES):
        alone = batch_with_hydrogens(smiles)
        own = together[graph == number]
        assert (logits(model, alone, x=torch.zeros_like(own)) - own).abs().max() < 1e-4


def test_near_pairs_are_all_pairs_within_the_cutoff(molecules):
    near = NearPairs.of(molecules)
    i, j = molecules.pair_index
    distance = (molecules.pos[i] - molecules.pos[j]).norm(dim=-1)
    assert torch.equal(near.pair, (distance < CUTOFF).nonzero().squeeze(-1))
    ends = molecules.pair_index[:, near.pair]
    forth, back = near.edges_of_pair.unbind(1)
    assert torch.equal(near.edges.index[:, forth], ends)
    assert torch.equal(near.edges.index[:, back], ends.flip(0))
    assert torch.equal(near.pair_of_edge[forth], torch.arange(len(near.pair)))
    assert set(molecules.bond_pair.tolist()) <= set(near.pair.tolist())


def test_low_noise_decides_by_bayes_rule_whatever_the_network_says(molecules):
    model = bond_model()
    near = NearPairs.of(molecules)
    classes = adjacency(molecules).long()[near.pair]
    x = torch.nn.functional.one_hot(classes, 5).float()
    assert torch.equal(logits(model, molecules, t=1e-6, x=x).argmax(-1), classes)
    # At t = 1 the channels say next to nothing.
    noisy, silent = (logits(model, molecules, 1.0, y) for y in (20 * x, 0 * x))
    assert (noisy - silent).abs().max() < 0.2


def test_tweedies_formula_returns_the_softmax(molecules):
    model = bond_model()
    network, near = model.score_3d_to_2d, NearPairs.of(molecules)
    x, t = torch.randn(len(near.pair), 5), torch.full((molecules.num_graphs,), 0.3)
    found = logits(model, molecules, 0.3, x)
    score = network.score(found, x, t, near, molecules)
    std = network.sde.marginal_prob(t, t)[1][0]
    assert torch.allclose(x + std**2 * score, found.softmax(-1), atol=1e-5)


def test_the_loss_is_zero_for_certainty_and_log_5_a_pair_for_ignorance(molecules):
    near = NearPairs.of(molecules)
    graph = molecules.pair_batch[near.pair]
    classes = adjacency(molecules).long()[near.pair]
    sure = 100.0 * torch.nn.functional.one_hot(classes, 5)
    assert bond_loss(sure, classes, graph, molecules).abs().max() < 1e-6
    found = bond_loss(torch.zeros_like(sure), classes, graph, molecules)
    counts = torch.bincount(graph, minlength=molecules.num_graphs)
    expected = math.log(len(CLASSES)) * counts / molecules.atoms_per_graph
    assert torch.allclose(found, expected)
    unlisted = torch.full_like(classes, len(CLASSES))
    assert not bond_loss(sure, unlisted, graph, molecules).any()


def test_padding_and_a_single_atom_leave_the_loss_as_it_is(records):
    plain, padded = both(records)
    model = bond_model()
    expected, found = (model(batch)[1]["3d_to_2d"] for batch in (plain, padded))
    assert torch.allclose(found, expected, atol=1e-5)
    alone = batch_of("C")
    assert model(alone)[0].item() == 0 and len(NearPairs.of(alone).pair) == 0


def test_positions_are_shifted_by_a_std_that_the_molecule_and_epoch_decide(molecules):
    model = bond_model()
    many = batch_with_hydrogens(*["CC(=O)Oc1ccccc1C(=O)O"] * 12)
    shifts = model.draw_noise(many).shifts
    std = torch.stack([part.std() for part in shifts.split(many.atoms_per_graph.tolist())])
    assert std.max() < 0.25 * 1.3 and std.min() < 0.12 < std.max() and std.std() > 0.02
    again = model.draw_noise(many).shifts
    later = model.draw_noise(dataclasses.replace(many, key=Key(0, 1))).shifts
    assert torch.equal(again, shifts) and not torch.equal(later, shifts)
    assert len(bond_model("model.topology.position_noise=0").draw_noise(many).shifts) == 0


def test_the_encoder_and_the_network_see_the_shifted_positions(molecules):
    model = bond_model()
    noise = model.draw_noise(molecules)
    moved = dataclasses.replace(molecules, pos=molecules.pos + noise.shifts)
    calm = dataclasses.replace(noise, shifts=noise.shifts[:0])
    expected = model(moved, calm)[0]
    assert torch.allclose(model(molecules, noise)[0], expected, atol=1e-6)
    assert not torch.allclose(model(molecules, calm)[0], expected, atol=1e-3)


def test_the_network_learns_the_bonds_of_a_few_molecules():
    batch = batch_with_hydrogens(*LEARNT)
    near = NearPairs.of(batch)
    found = logits(trained(), batch, 1.0, torch.zeros(len(near.pair), 5)).argmax(-1)
    assert torch.equal(found, adjacency(batch).long()[near.pair])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.topology.time_dim=0", "one_hot needs time_dim above 0"),
        ("run.cuda_graphs=true", "cuda_graphs does not work with model.topology.bonds=one_hot"),
        ("model.topology.position_noise=-1", "position_noise must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit_are_named(override, message):
    with pytest.raises(MsdeError, match=message):
        make_config("bonds", overrides=[override])


def test_joint_training_has_all_terms():
    model = bond_model("loss.coefficient_contrastive=1", "loss.coefficient_2d_to_3d=1")
    loss, terms = model(batch_with_hydrogens("CCO", "CC=O"))
    loss.backward()
    assert all(torch.isfinite(term).all() and term.any() for term in terms.values())
