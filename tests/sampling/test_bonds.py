"""Bonds of geometries: right ones, symmetries, samplers, bad input."""

import numpy as np
import pytest
from rdkit import Chem

from fixtures.bonds import geometry, trained
from fixtures.models import make_small
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained
from msde.sampling.bonds import BondOptions, Geometry, class_log_probabilities, find_bonds
from msde.sampling.samplers import SAMPLERS

FEW = ["C", "C=C", "CO", "CC=O", "C#N"]


def smiles(found):
    return Chem.MolToSmiles(Chem.RemoveHs(found.mol)) if found.mol else found.reason


def test_the_molecules_that_the_network_knows_are_found_in_order():
    found = find_bonds(trained(), [geometry(text) for text in FEW], BondOptions())
    assert [smiles(one) for one in found] == FEW


def test_positions_are_kept_and_stereochemistry_is_theirs():
    given = geometry("CO")
    found = next(find_bonds(trained(), [given], BondOptions()))
    assert np.allclose(found.mol.GetConformer().GetPositions(), given.pos)
    assert [a.GetAtomicNum() for a in found.mol.GetAtoms()] == given.z.tolist()


@pytest.mark.parametrize("sampler", ["classifier", *SAMPLERS])
def test_every_sampler_gives_probabilities_that_a_seed_repeats(sampler):
    options = BondOptions(sampler=sampler, steps=6)
    given = [geometry("CO"), geometry("C=C")]
    (pairs, log_p), _ = class_log_probabilities(trained(), given, options)
    assert np.allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)
    again = class_log_probabilities(trained(), given, options)[0][1]
    assert np.array_equal(log_p, again) and len(pairs) == len(log_p)
    if sampler != "adaptive":  # its steps are shared
        alone = class_log_probabilities(trained(), given[:1], options)[0][1]
        assert np.abs(np.exp(alone) - np.exp(log_p)).max() < 1e-3


def test_a_rotated_molecule_has_the_same_bonds():
    given = geometry("CC=O")
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = Geometry(given.z, given.pos @ q.T + 5)
    (_, a), (_, b) = class_log_probabilities(trained(), [given, turned], BondOptions())
    assert np.abs(np.exp(a) - np.exp(b)).max() < 1e-3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda z, pos: (z[:0], pos[:0]), "no atoms"),
        (lambda z, pos: (np.array([119, *z[1:]]), pos), "atom 0 has atomic number 119"),
        (lambda z, pos: (z, np.where(np.arange(len(z))[:, None] == 2, np.nan, pos)), "of atom 2"),
        (lambda z, pos: (z, pos[[0, 0, *range(2, len(z))]]), "atoms 0 and 1 are on one spot"),
        (lambda z, pos: (np.ones(500, int), np.random.rand(500, 3) * 99), "500 atoms, at most 400"),
        (lambda z, pos: (z, pos[:-1]), "positions of shape"),
        (lambda z, pos: (z[:-1], pos[:-1]), "no valences fit total charge 0: atom"),
    ],
)
def test_bad_input_has_one_line_and_the_others_are_done(change, reason):
    good = geometry("CO")
    bad = Geometry(*change(good.z, good.pos))
    first, middle, last = find_bonds(trained(), [good, bad, good], BondOptions())
    assert middle.mol is None and reason in middle.reason and "\n" not in middle.reason
    assert smiles(first) == smiles(last) == "CO"


def test_a_loaded_model_has_the_same_bonds():
    given = geometry("CC=O")
    assert smiles(Pretrained(trained()).bonds(given.z, given.pos)) == "CC=O"
    with pytest.raises(MsdeError, match="sampler must be one of classifier, "):
        Pretrained(trained()).bonds(given.z, given.pos, sampler="magic")
    with pytest.raises(MsdeError, match="model.topology.bonds is scalar"):
        Pretrained(make_small("base")).bonds(given.z, given.pos)
