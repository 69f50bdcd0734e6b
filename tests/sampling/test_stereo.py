"""Labels that come out wrong are found, and double bonds turned round."""

import dataclasses

import numpy as np
import pytest
from rdkit import Chem

from fixtures.conformers import atropisomer, embedded, sampling_model
from msde.chem.stereo import stereo_of, stereo_of_conformer
from msde.sampling import conformers
from msde.sampling.conformers import ConformerOptions, sample_conformers
from msde.sampling.stereo import inverts, turn_bonds, wrong_bonds

PAIRS = [
    ("C/C=C/CC", "C/C=C\\CC"),
    ("C/C(F)=C(\\CC)c1ccccc1", "C/C(F)=C(/CC)c1ccccc1"),
    ("C/C=N/O", "C/C=N\\O"),
    ("C/C=C/C=C/C", "C/C=C\\C=C\\C"),
    ("O=C1N(C)c2ccccc2/C1=C1/SC(=O)NC1=O", "O=C1N(C)c2ccccc2/C1=C1\\SC(=O)NC1=O"),
]


@pytest.mark.parametrize("one, other", PAIRS, ids=[one for one, _ in PAIRS])
def test_a_bond_with_the_other_label_is_turned(one, other):
    mol, wanted = embedded(one), Chem.MolFromSmiles(other)
    pos = mol.GetConformer().GetPositions()
    assert wrong_bonds(mol, pos) == []
    turned = turn_bonds(wanted, pos, wrong_bonds(wanted, pos))
    mol.GetConformer().SetPositions(turned)
    assert stereo_of_conformer(mol, -1) == stereo_of(wanted)
    assert wrong_bonds(wanted, turned) == []


def test_lengths_of_bonds_stay():
    mol, wanted = embedded(PAIRS[1][0]), Chem.MolFromSmiles(PAIRS[1][1])
    pos = mol.GetConformer().GetPositions()
    turned = turn_bonds(wanted, pos, wrong_bonds(wanted, pos))
    ends = np.array([[b.GetBeginAtomIdx(), b.GetEndAtomIdx()] for b in mol.GetBonds()]).T
    before, after = (np.linalg.norm(x[ends[0]] - x[ends[1]], axis=1) for x in (pos, turned))
    assert np.allclose(before, after) and np.abs(pos - turned).max() > 0.5


def test_a_wrong_bond_in_a_ring_is_found_but_not_turned():
    ring = Chem.MolFromSmiles("C1CCCC/C=C\\CCC1")
    cis, trans = (
        embedded(smiles).GetConformer().GetPositions()
        for smiles in ("C1CCCC/C=C\\CCC1", "C1CCCC/C=C/CCC1")
    )
    (wrong,) = wrong_bonds(ring, trans)
    assert wrong.GetBondType() == Chem.BondType.DOUBLE and wrong_bonds(ring, cis) == []
    assert np.array_equal(turn_bonds(ring, trans, [wrong]), trans)


def test_bonds_without_a_label_are_not_wrong():
    free = embedded("CC=CC")
    assert wrong_bonds(free, free.GetConformer().GetPositions()) == []


@pytest.mark.parametrize("smiles", ["C[C@H](F)Cl", "C[C@](F)(Cl)Br", "C[C@@H]1CCCO1"])
def test_a_centre_with_the_other_chirality_is_found(smiles):
    mol = embedded(smiles)
    pos = mol.GetConformer().GetPositions()
    turned = pos @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 1
    assert not inverts(mol, turned, pos)
    assert inverts(mol, pos * [1, 1, -1], pos)
    free = embedded("CC(F)Cl")
    assert not inverts(free, pos[: free.GetNumAtoms()] * [1, 1, -1], pos)


def test_a_hindered_bond_with_the_other_twist_is_found():
    mol = atropisomer()
    pos = embedded(mol).GetConformer().GetPositions()
    assert not inverts(mol, pos + 1, pos)
    assert inverts(mol, pos * [1, 1, -1], pos)
    options = ConformerOptions(1, start="noise", steps=2)
    (note,) = next(sample_conformers(sampling_model(), [mol], options)).notes
    assert note == "sampled from noise: M or P of hindered bonds is left to chance"


@pytest.mark.parametrize(
    ("start", "smiles"),
    [("noise", PAIRS[1][0]), ("etkdg", PAIRS[1][0]), ("etkdg", "C1CCC/C=C/CC1")],
    ids=["noise", "etkdg", "ring"],
)
def test_only_wrong_samples_are_sampled_again_from_other_noise(monkeypatch, start, smiles):
    model, calls = sampling_model(), []
    inner = conformers.sample_batch

    def sample_batch(model, batch, numbers, starts, options, **named):
        calls.append((numbers.tolist(), starts is None, named["first_draw"]))
        return inner(model, batch, numbers, starts, options, **named)

    monkeypatch.setattr(conformers, "sample_batch", sample_batch)
    options = ConformerOptions(num=6, start=start, steps=4, std=0.7)
    found = next(sample_conformers(model, [smiles], options))
    once = next(sample_conformers(model, [smiles], dataclasses.replace(options, repair=False)))
    (numbers, from_noise, draw), *others = calls[:-1]
    assert numbers == list(range(6)) and from_noise == (start == "noise") and draw == 0
    assert others, "this untrained model makes no wrong label: take another seed"
    for again, is_noise, draw in others:
        assert set(again) < set(numbers) and not is_noise and draw > 0
    first = others[0][0]
    assert found.notes == [f"sample {k + 1} was made again, its stereo was wrong" for k in first]
    heavy = [Chem.RemoveHs(m.mol) for m in (found, once)]
    for k in range(6):
        one, other = (m.GetConformer(k).GetPositions() for m in heavy)
        assert np.allclose(one, other, atol=1e-4) == (k not in first)
