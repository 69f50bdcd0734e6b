"""Conformers of files: drawings, notes, and molecules without CIP labels."""

import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from fixtures.conformers import saved_model
from msde.chem.stereo import NOT_CHECKED
from msde.data_tools.models import generation
from msde.data_tools.options import Options
from msde.errors import MsdeError
from msde.sampling.conformers import ConformerOptions

FEW = ConformerOptions(num=1, steps=3)
CAGE = (
    "C[C@]12[C@@H]3[C@H]4[C@H]5[C@H]6[C@H]7[C@@H]8[C@@H]5[C@H]3[C@@H]3[C@@H]8[C@H]5[C@H]7"
    "[C@H]7[C@@H]6[C@H]4[C@@H]1[C@@H]7[C@@H]5[C@H]32"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved_model(tmp_path_factory)


def sampled(weights, path, sampling=FEW, **options):
    """The records of the conformers of a file."""
    output = path.with_name("conformers.sdf")
    generation.conformers_of_file(weights, path, output, sampling, options=Options(**options))
    return list(Chem.SDMolSupplier(str(output), removeHs=False))


def drawing(smiles, keep_hydrogens=False):
    """A drawing as a record of an SD file."""
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    mol = Chem.MolFromSmiles(smiles, parameters)
    rdDepictor.Compute2DCoords(mol)
    return Chem.MolToMolBlock(mol) + "$$$$\n"


@pytest.mark.parametrize("keep", [None, False, True])
def test_drawings_with_implied_and_with_some_hydrogens_are_sampled(weights, tmp_path, keep, capsys):
    records = drawing("C[C@H](F)Cl"), drawing("[H][C@](C)(F)Cl", keep_hydrogens=True)
    assert records[1].count(" H  ") == 1
    (tmp_path / "m.sdf").write_text("".join(records))
    found = sampled(weights, tmp_path / "m.sdf", keep_hydrogens=keep)
    plain = [Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False) for mol in found]
    assert plain == ["CC(F)Cl"] * 2 and all(mol.GetNumAtoms() == 8 for mol in found)
    assert "of 2 centres" in capsys.readouterr().out


def test_notes_of_the_reader_and_of_the_sampler_are_told(weights, tmp_path, capsys):
    (tmp_path / "m.smi").write_text("[13CH3]CO a\n[2H]CCO b\nC[C@H](F)Cl |&1:1| c\nCCB(O)O d\n")
    relaxed = ConformerOptions(num=1, steps=3, relax=True)
    notes = [
        mol.GetProp("note") if mol.HasProp("note") else ""
        for mol in sampled(weights, tmp_path / "m.smi", relaxed)
    ]
    said = capsys.readouterr()
    expected = [
        "isotopes are not stored: 1 13C",
        "hydrogen isotopes are removed like hydrogens: 1 D",
        "a mixture of both stereoisomers (racemic) at atom 1: read as drawn",
        "not relaxed: MMFF94 lacks parameters",
    ]
    for note, text in zip(notes, expected, strict=True):
        assert note.count(text) == 1
    for name, line, text in zip("abc", (1, 2, 3), expected, strict=False):
        assert f"line {line} ({name}) sampled, but: {text}" in said.err
    assert "line 4" not in said.err
    assert "1 of 4 molecules: not relaxed: MMFF94 lacks parameters" in said.out


def test_stereo_that_takes_too_long_is_not_called_right(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("msde.chem.stereo.CIP_ITERATIONS", 10_000)
    (tmp_path / "m.smi").write_text(f"{CAGE} cage\nCCO ethanol\n")
    cage, ethanol = sampled(weights, tmp_path / "m.smi", ConformerOptions(1, "noise", steps=2))
    assert cage.GetProp("stereo") == NOT_CHECKED and ethanol.GetProp("stereo") == "right"


@pytest.mark.parametrize("std", [0.04, 1e-3])
def test_noise_below_that_of_the_last_step_is_one_line_before_any_work(weights, tmp_path, std):
    (tmp_path / "m.smi").write_text("CCO\n")
    with pytest.raises(MsdeError, match=r"expected more than 0.0503 A, .* at most 10 A"):
        sampled(weights, tmp_path / "m.smi", ConformerOptions(num=1, std=std))


def test_noise_that_the_model_does_not_know_is_lowered_and_told_once(weights, tmp_path, caplog):
    (tmp_path / "m.smi").write_text("CCO\n")
    assert len(sampled(weights, tmp_path / "m.smi", ConformerOptions(1, std=50.0, steps=2))) == 1
    said = "noise on ETKDG's conformers: 10 A, the most that the model knows, not 50 A"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_samples_that_are_not_fully_relaxed_are_noted_and_counted(
    weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("msde.chem.conformers.RELAX_STEPS", 1)
    (tmp_path / "m.smi").write_text("CCCO\n")
    found = sampled(weights, tmp_path / "m.smi", ConformerOptions(num=2, steps=3, relax=True))
    note = "not fully relaxed: MMFF94 stopped after 1 steps in 2 of 2 conformers"
    assert all(note in mol.GetProp("note").split("; ") for mol in found)
    said = "1 of 1 molecules: some samples not fully relaxed: MMFF94 stopped"
    assert said in capsys.readouterr().out
