"""Conformers that stand for many, of molecules whose clusters are known."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolAlign, rdMolTransforms
from rdkit.Geometry import Point3D

from fixtures.conformers import embedded, mirrored
from msde.chem.clusters import ids_of, representatives, with_conformers


def turned(angles):
    """Fluoroethanol with these torsions, in degrees: 180 and 60 are 0.8 A apart."""
    mol = embedded("OCCF")
    first = Chem.Conformer(mol.GetConformer())
    mol.RemoveAllConformers()
    for angle in angles:
        number = mol.AddConformer(first, assignId=True)
        rdMolTransforms.SetDihedralDeg(mol.GetConformer(number), 0, 1, 2, 3, angle)
    return mol


@pytest.mark.parametrize("angles", [[62, 180, 178, 58, 60, 64], [180, 60, 178, 58, 177, 176]])
def test_one_of_each_cluster_is_chosen_the_larger_first(angles):
    first, second = (angles[k] > 90 for k in representatives(turned(angles), 2))
    assert first != second
    assert first == (np.mean(np.array(angles) > 90) > 0.5)


def test_a_low_energy_goes_before_a_large_cluster():
    mol = turned([60, 180, 60, 60, 60])
    assert representatives(mol, 2) == [0, 1]
    assert representatives(mol, 2, [9, 0, 9, 9, 9]) == [1, 0]
    assert representatives(mol, 2, [1e6, 1e6, 1e6, 1e6, 1e6]) == [0, 1]


def test_energies_that_differ_by_rounding_are_equal():
    assert representatives(turned([60, 180, 60]), 1, [5.001, 5.0, 5.002]) == [0]


def test_the_first_of_many_are_those_of_few_and_none_comes_twice():
    mol = embedded("CCCCCO", 12)
    many = representatives(mol, 12)
    assert sorted(many) == list(range(12))
    for num in range(1, 12):
        assert representatives(mol, num) == many[:num]
    assert representatives(mol, 50) == many


def test_representatives_are_near_all_conformers():
    mol = embedded("CCCCCCO", 30)
    distances = np.zeros((30, 30))
    distances[np.tril_indices(30, -1)] = rdMolAlign.GetAllConformerBestRMS(Chem.Mol(mol))
    distances += distances.T

    def mean(ids):
        return distances[:, ids].min(axis=1).mean()

    assert mean(representatives(mol, 1)) == pytest.approx(distances.mean(axis=0).min(), abs=1e-3)
    rng = np.random.default_rng(0)
    chosen = mean(representatives(mol, 6))
    assert all(chosen < mean(rng.choice(30, 6, replace=False)) for _ in range(20))


def test_wrong_labels_come_after_right_ones_whatever_their_energy():
    mol = embedded("C[C@H](F)[C@@H](O)CC", 6)
    wrong = mirrored(mol)
    both = Chem.Mol(mol)
    both.RemoveAllConformers()
    for k in range(6):
        both.AddConformer(wrong.GetConformer(k), assignId=True)
        both.AddConformer(mol.GetConformer(k), assignId=True)
    for energies in (None, [0, 5000] * 6):
        found = representatives(both, 8, energies)
        assert sorted(found[:6]) == [1, 3, 5, 7, 9, 11]
        assert len(found) == 8 and set(found[6:]) < {0, 2, 4, 6, 8, 10}
    assert len(representatives(wrong, 3)) == 3


def test_positions_that_are_not_finite_come_last():
    mol = turned([60, 180, 61])
    mol.GetConformer(0).SetAtomPosition(0, Point3D(float("nan"), 0, 0))
    assert sorted(representatives(mol, 2)) == [1, 2]
    assert representatives(mol, 3)[-1] == 0
    assert representatives(mol, 3, [float("nan"), 1, 1])[-1] == 0
    assert representatives(mol, 3, [0, float("nan"), 1]) == [2, 0, 1]
    assert sorted(representatives(mol, 3, [float("inf")] * 3)) == [0, 1, 2]


@pytest.mark.parametrize("smiles", ["C", "CC", "c1ccccc1", "FC(F)(F)C(F)(F)F"])
def test_rounding_does_not_change_the_choice_among_equals(smiles):
    one = embedded(smiles, hydrogens=True)
    mol = with_conformers(one, [0] * 6)
    rng = np.random.default_rng(1)
    for conformer in mol.GetConformers():
        pos = conformer.GetPositions()
        conformer.SetPositions(pos + 1e-6 * rng.normal(size=pos.shape))
    assert representatives(mol, 3) == [0, 1, 2]


def test_copies_of_conformers_are_in_the_order_asked_for():
    mol = turned([60, 180, 61])
    copy = with_conformers(mol, [2, 0])
    assert ids_of(copy) == [0, 1] and ids_of(mol) == [0, 1, 2]
    for number, source in enumerate([2, 0]):
        expected = mol.GetConformer(source).GetPositions()
        assert np.array_equal(copy.GetConformer(number).GetPositions(), expected)
