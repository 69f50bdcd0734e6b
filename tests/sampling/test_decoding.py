"""The likeliest molecule under valences and a charge."""

import numpy as np
import pytest
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.sampling.decoding import decode, valences

CODES = {1.0: 1, 2.0: 2, 3.0: 3, 1.5: 4}
SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "c1cc[nH]c1",
    "O=[N+]([O-])c1ccncc1",
    "CS(N)(=O)=O",
    "C[n+]1ccccc1",
    "CC(=O)[O-]",
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "CN=[N+]=[N-]",
    "CP(=O)(O)O",
    "[Cl-].[Na+]",
    "ClC(Cl)(Cl)Cl",
    "C1=CC=CCC=C1",
    "F[B-](F)(F)F",
]


def problem(smiles, hydrogens=True, certainty=1e-5):
    """Atoms, all pairs and the log-probabilities that name the true classes."""
    mol = Chem.MolFromSmiles(smiles)
    mol = Chem.AddHs(mol) if hydrogens else mol
    n = mol.GetNumAtoms()
    pairs = np.array([(i, j) for j in range(n) for i in range(j)]).reshape(-1, 2)
    log_p = np.full((len(pairs), 5), np.log(certainty))
    for row, (i, j) in enumerate(pairs.tolist()):
        bond = mol.GetBondBetweenAtoms(i, j)
        log_p[row, CODES[bond.GetBondTypeAsDouble()] if bond else 0] = np.log1p(-4 * certainty)
    z = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return z, pairs, log_p, Chem.GetFormalCharge(mol)


@pytest.mark.parametrize("hydrogens", [True, False], ids=["hydrogens", "none"])
@pytest.mark.parametrize("smiles", SMILES)
def test_certain_classes_give_the_molecule(smiles, hydrogens):
    found = decode(*problem(smiles, hydrogens))
    assert Chem.MolToSmiles(Chem.RemoveHs(found)) == Chem.CanonSmiles(smiles)
    assert not any(atom.GetNumRadicalElectrons() for atom in found.GetAtoms())


def test_valences_overrule_a_class_that_is_a_little_likelier():
    z, pairs, log_p, charge = problem("C=C")
    carbons = (pairs == [0, 1]).all(1)
    log_p[carbons] = np.log([0.01, 0.5, 0.4, 0.05, 0.04])
    assert Chem.MolToSmiles(Chem.RemoveHs(decode(z, pairs, log_p, charge))) == "C=C"


def test_the_total_charge_decides_who_bears_it():
    z, pairs, log_p, _ = problem("CC(=O)O", hydrogens=False)
    for charge, smiles in ((0, "CC(=O)O"), (-1, "CC(=O)[O-]")):
        assert Chem.MolToSmiles(decode(z, pairs, log_p, charge)) == smiles


def test_the_valence_or_charge_that_fails_is_named():
    z, pairs, log_p, _ = problem("C")
    with pytest.raises(MoleculeError, match=r"atom 0 \(C\) has valence 3"):
        decode(z[:-1], pairs[(pairs < 4).all(1)], log_p[(pairs < 4).all(1)], 0)
    with pytest.raises(MoleculeError, match="formal charges add up to 0, expected 1|total charge"):
        decode(z, pairs, log_p, 1)


def test_what_is_not_decided_in_time_is_told_and_not_taken_for_impossible(monkeypatch):
    monkeypatch.setattr("msde.sampling.decoding.TIME_LIMIT", 1e-3)
    with pytest.raises(MoleculeError, match="not decided within 0.001 s which bonds"):
        decode(*problem("CC(=O)Oc1ccccc1C(=O)O"))


def test_the_last_element_has_no_charge_that_needs_another():
    found = decode(np.array([118, 6]), np.zeros((0, 2), int), np.zeros((0, 5)))
    assert [atom.GetFormalCharge() for atom in found.GetAtoms()] == [0, 0]
    with pytest.raises(ValueError, match="element 118 cannot have charge -1"):
        valences(118, -1)


@pytest.mark.parametrize("smiles", ["N=C(c1ccccc1)C(=O)O", "Nc1ccncc1", "CS"])
def test_polar_hydrogens_alone_do_not_rule_out_implied_ones(smiles):
    full = Chem.AddHs(Chem.MolFromSmiles(smiles))
    z, pairs, log_p, charge = problem(smiles)
    on_carbon = [
        a.GetIdx()
        for a in full.GetAtoms()
        if a.GetAtomicNum() == 1 and a.GetNeighbors()[0].GetAtomicNum() == 6
    ]
    assert on_carbon
    kept = np.setdiff1d(np.arange(len(z)), on_carbon)
    rows = np.isin(pairs, kept).all(1)
    found = decode(z[kept], np.searchsorted(kept, pairs[rows]), log_p[rows], charge)
    assert Chem.MolToSmiles(Chem.RemoveHs(found)) == Chem.CanonSmiles(smiles)


def test_valences_are_those_of_the_element_with_as_many_electrons():
    assert valences(7, 1) == valences(6, 0) == (4,)
    assert valences(8, -1) == valences(9, 0) == (1,)
    assert valences(1, 1) == (0,) and valences(30, 0) == ()
    with pytest.raises(ValueError, match="cannot have charge"):
        valences(1, 2)
