"""Conformers of RDKit, and what is said of those that are not as asked for."""

import numpy as np
import pytest
from rdkit import Chem

from fixtures.molecules import SMILES, make_record
from fixtures.readers import convert
from msde.chem import conformers
from msde.chem.conformers import embed_conformers, relax
from msde.data_tools.options import Options


def test_positions_are_centred_and_those_of_the_molecule_wherever_it_stands():
    one, elsewhere = make_record(SMILES[2], line=7), make_record(SMILES[2], line=8)
    assert np.abs(one.pos.mean(axis=1)).max() < 1e-5
    assert np.array_equal(one.pos, elsewhere.pos)


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [("CCB(O)O", ["MMFF94 lacks parameters: geometry of ETKDGv3 alone"]), ("CCO", [])],
)
def test_a_molecule_that_mmff_does_not_know_is_told(smiles, expected, tmp_path):
    notes = []
    embed_conformers(Chem.MolFromSmiles(smiles), 1, 2, notes=notes)
    assert notes == expected
    (tmp_path / "m.smi").write_text(f"{smiles}\n")
    assert convert(tmp_path / "m.smi")[1][1].notes == tuple(expected)


def test_fewer_conformers_than_asked_for_are_told(tmp_path, monkeypatch):
    def embed(mol, count, seed, embed=conformers.embed):
        return embed(mol, count - 3, seed)

    monkeypatch.setattr(conformers, "embed", embed)
    (tmp_path / "m.smi").write_text("CCO\n")
    parsed = convert(tmp_path / "m.smi", Options(conformers=10))[1][1]
    assert parsed.mol.GetNumConformers() == 7
    assert parsed.notes == ("fewer conformers: 7 of 10",)


def test_relaxation_that_is_stopped_is_told(monkeypatch):
    mol, notes = Chem.AddHs(Chem.MolFromSmiles("CCCCO")), []
    conformers.embed(mol, 3, 1)
    monkeypatch.setattr(conformers, "RELAX_STEPS", 2)
    assert len(relax(Chem.Mol(mol), notes)) == 3
    assert notes == ["not fully relaxed: MMFF94 stopped after 2 steps in 3 of 3 conformers"]
    monkeypatch.setattr(conformers, "RELAX_STEPS", 5000)
    relax(mol, notes)
    assert len(notes) == 1
