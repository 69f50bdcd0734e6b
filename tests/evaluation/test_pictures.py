"""Samples drawn over references."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from msde.evaluation.pictures import overlay, structure_of


@pytest.fixture
def mol():
    full = Chem.AddHs(Chem.MolFromSmiles("Cc1ccccc1O"))
    rdDistGeom.EmbedMolecule(full, randomSeed=1)
    return Chem.RemoveHs(full)


def test_a_moved_sample_lies_on_its_reference(mol):
    pos = mol.GetConformer().GetPositions()
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    cell = overlay(mol, pos @ (turn * np.linalg.det(turn)) + 5)
    assert cell.title == "0.00 A"
    assert np.allclose(cell.structure.pos, cell.reference.pos, atol=1e-3)
    assert np.allclose(cell.reference.pos, pos)  # and the reference stays where it was


def test_a_structure_has_the_atoms_and_bonds_of_the_molecule(mol):
    found = structure_of(mol)
    assert found.numbers.tolist() == [6] * 7 + [8]
    assert found.bonds.shape == (8, 2) and found.pos.shape == (8, 3)
