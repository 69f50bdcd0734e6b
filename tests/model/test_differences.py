"""Where we differ from the published code on purpose: on in `base`, as published in `paper`.

Others stand with their subject: priors, schedules and both layouts of the SDEs in test_sde.py,
negatives in test_contrastive.py, translations and batch-mates in test_symmetry.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from rdkit import Chem

from fixtures.models import make_small
from fixtures.molecules import batch_of, make_record
from msde.chem.vocabulary import CIP_LABELS
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model import geometry
from msde.model.sde import per_row, perturb, score_from_noise
from msde.philox import Key


def molecule_means(rows, batch):
    return geometry.centre(rows, batch.batch, batch.atoms_per_graph) - rows


def test_noise_and_noised_positions_are_centred_in_base(batch):
    for kind, centred in (("base", True), ("paper", False)):
        model = make_small(kind)
        noise = model.draw_noise(batch)
        t = noise.t_2d_to_3d[batch.batch]
        pos_t = perturb(model.score_2d_to_3d.sde, batch.pos, t, noise.pos)
        for rows in (noise.pos, pos_t):
            assert (molecule_means(rows, batch).abs().max() < 1e-4) == centred


def test_only_networks_of_base_depend_on_the_time(batch):
    for kind, sees in (("base", True), ("paper", False)):
        model = make_small(kind, "model.conformer.input_spread=null")
        h = model.encoder_2d(batch)
        early, late = (
            model.score_2d_to_3d(batch.pos, torch.full((batch.num_graphs,), t), h, batch)
            for t in (0.1, 0.9)
        )
        assert torch.equal(early, late) != sees
    model = make_small("base", "model.topology.input_spread=null")
    types = torch.nn.functional.one_hot(batch.x[:, 0], 119).float()
    adj = torch.zeros(batch.pair_index.shape[1])
    early, late = (
        model.score_3d_to_2d(types, adj, torch.full((batch.num_graphs,), t), h, batch)
        for t in (0.1, 0.9)
    )
    assert not torch.equal(early[0], late[0]) and not torch.equal(early[1], late[1])


def test_both_targets_of_the_3d_to_2d_network_give_the_same_score(batch):
    """`paper` keeps the published 3D -> 2D target; both give the same score from one function."""
    outputs = {}
    for divide in ("true", "false"):
        model = make_small("paper", f"model.topology.divide_by_std={divide}")
        noise = model.draw_noise(batch)
        types = torch.nn.functional.one_hot(batch.x[:, 0], 119) + noise.types
        h, t = model.encoder_3d(batch), noise.t_3d_to_2d
        outputs[divide] = model.score_3d_to_2d(types, noise.adj, t, h, batch)
    std = model.score_3d_to_2d.sde.marginal_prob(t, t)[1]
    for divided, plain, rows in zip(
        outputs["true"], outputs["false"], (batch.batch, batch.pair_batch), strict=True
    ):
        # The score of the published output: the network's over the variance.
        variance = per_row(std[rows].square(), plain)
        assert torch.allclose(score_from_noise(divided, std[rows]), -plain / variance, rtol=1e-4)


def test_isolated_atoms_are_not_padding():
    """The sodium of a salt has no bond, but its type and its pairs count."""
    model = make_small("paper")
    salt = batch_of("CC(=O)[O-].[Na+]", key=Key(1, 2))
    noise = model.draw_noise(salt)
    h = model.encoder_3d(salt)
    sodium = int(torch.nonzero(salt.z == 11))
    pairs = (salt.pair_index == sodium).any(0)
    losses = torch.stack(model.loss_3d_to_2d(h, salt, noise))
    other = dataclasses.replace(
        noise,
        types=noise.types.index_add(0, torch.tensor([sodium]), torch.ones(1, 119)),
        adj=noise.adj + pairs,
    )
    assert not torch.isclose(torch.stack(model.loss_3d_to_2d(h, salt, other)), losses).any()


def test_the_batch_is_not_changed_by_a_step(batch):
    before = {k: v.clone() for k, v in batch.tensors().items()}
    for kind in ("paper", "base"):
        make_small(kind).train()(batch)[0].backward()
    for name, tensor in batch.tensors().items():
        assert torch.equal(tensor, before[name]) and not tensor.requires_grad


@pytest.mark.parametrize("kind", ["paper", "base, PaiNN, frame"])
def test_no_neighbour_within_the_cutoff_is_dropped(kind):
    """The published graph keeps 32 of them, in an order that depends on its library."""
    model = make_small(kind, "model.painn.cutoff=10")
    big = batch_of("c1ccc2c(c1)c1ccccc1c1c2ccc2c1ccc1c2cccc1C1CCC2CCCCC2C1C1CCCCC1")
    assert big.num_atoms > 40
    pos = (0.5 * big.pos).requires_grad_()  # all within the cutoff of each other
    h = model.encoder_3d(big, pos)
    (gradient,) = torch.autograd.grad(h[0].square().sum(), pos)
    assert (gradient.abs().sum(-1) > 0).all()


def renumbered(smiles, seed):
    mol = Chem.MolFromSmiles(smiles)
    order = np.random.default_rng(seed).permutation(mol.GetNumAtoms()).tolist()
    return Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False)


CHIRAL = ["C[C@H](N)C(=O)O", "F[C@](Cl)(Br)I", "O[C@H]1CC[C@@H](C)CC1", "C[C@@H]1CC[C@H](O)C=C1"]


def test_chirality_does_not_depend_on_the_order_of_atoms():
    changed = 0
    for smiles in CHIRAL:
        batches = [batch_of(renumbered(smiles, seed)) for seed in range(6)]
        for kind in ("base", "paper"):
            model = make_small(kind)
            sums = torch.stack([model.encoder_2d(b).double().sum(0) for b in batches])
            differ = (sums - sums[0]).abs().max() > 1e-3
            assert not (differ and kind == "base")
            changed += int(differ)
    assert changed > 0  # the published feature does change


def test_mirror_images_and_pseudo_asymmetric_centres_differ():
    model = make_small("base")
    for one, other in [
        ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"),
        ("O[C@H]1CC[C@H](C)CC1", CHIRAL[2]),
    ]:
        h = [model.encoder_2d(batch_of(smiles)).sum(0) for smiles in (one, other)]
        assert (h[0] - h[1]).abs().max() > 1e-3
    cis = batch_of("O[C@H]1CC[C@H](C)CC1")
    assert {CIP_LABELS[c] for c in cis.cip.tolist()} & {"r", "s"}


def test_the_embedding_of_hydrogen_is_trained_in_base():
    molecule = MoleculeBatch.from_columns(
        columns_from_records([make_record("CO", keep_hydrogens=True)])
    )
    for kind, trained in (("paper, PaiNN", False), ("base, PaiNN, frame", True)):
        encoder = make_small(kind).encoder_3d
        encoder(molecule).square().sum().backward()
        assert (encoder.embedding.weight[0].abs().sum() > 0).item() == trained
        assert (encoder.embedding.weight.grad[0].abs().sum() > 0).item() == trained
