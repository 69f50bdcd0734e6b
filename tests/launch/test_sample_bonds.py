"""launch/sample.py bonds and evaluate_samples.py bonds: files in, an SD file and a table out."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from fixtures.bonds import geometry, saved_bond_model, xyz
from fixtures.data_sets import write_data_set
from fixtures.molecules import make_record
from fixtures.paths import ROOT
from msde.chem.rebuild import mol_from_record
from msde.chem.record import Origin
from msde.chem.scaffold import scaffold_of
from msde.data_tools.models.bond_comparison import compare_bonds
from msde.data_tools.models.bonds import bonds_of_file
from msde.errors import MsdeError
from msde.launch import evaluate_samples
from msde.sampling.bonds import BondOptions

BROKEN = "3\nunknown\nO 0 0 0\nQq 0 0 1\nH 1 0 0\n"
LARGE = "500\nlarge\n" + "".join(f"Ar {3 * k} 0 0\n" for k in range(500))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_bond_model(tmp_path_factory)


def smiles_in(path):
    return [
        Chem.MolToSmiles(Chem.RemoveHs(m)) for m in Chem.SDMolSupplier(str(path), removeHs=False)
    ]


def test_a_file_with_bad_frames_is_done_and_each_is_one_line(checkpoint, tmp_path):
    good = geometry("CO")
    holes = replace(good, pos=np.where(np.arange(len(good.z))[:, None] == 3, np.nan, good.pos))
    spot = replace(good, pos=good.pos[[0, 0, *range(2, len(good.z))]])
    frames = [xyz(good), BROKEN, xyz(holes), xyz(spot), LARGE, xyz(geometry("CC=O"))]
    (tmp_path / "m.xyz").write_text("".join(frames))
    command = [sys.executable, ROOT / "launch/sample.py", "bonds", "--checkpoint", checkpoint]
    command += ["--input", tmp_path / "m.xyz", "--output", tmp_path / "m.sdf"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "bonds of 2 of 6 molecules" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("no bonds of")]
    reasons = ["'Qq' is no element", "not finite", "one spot", "500 atoms, at most 400"]
    assert len(lines) == 4
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))
    assert smiles_in(tmp_path / "m.sdf") == ["CO", "CC=O"]


def test_bonds_and_titles_of_an_sd_file_are_the_positions_own(checkpoint, tmp_path):
    given = geometry("C=C")
    mol = Chem.RWMol()
    for z in given.z.tolist():
        mol.AddAtom(Chem.Atom(z))
    for k in range(1, 6):
        mol.AddBond(0, k, Chem.BondType.SINGLE)  # nonsense, which is not used
    conformer = Chem.Conformer(len(given.z))
    conformer.SetPositions(given.pos)
    mol.AddConformer(conformer)
    mol.SetProp("_Name", "ethene")
    block = Chem.MolToMolBlock(mol, kekulize=False)
    (tmp_path / "m.sdf").write_text(f"{block}$$$$\n")
    bonds_of_file(checkpoint, tmp_path / "m.sdf", tmp_path / "out.sdf", BondOptions())
    assert smiles_in(tmp_path / "out.sdf") == ["C=C"]
    assert (tmp_path / "out.sdf").read_text().startswith("ethene\n")


def test_a_file_without_positions_is_an_error_and_leaves_no_file(checkpoint, tmp_path, capsys):
    (tmp_path / "m.csv").write_text("smiles,id\nCO,one\nCC=O,two\n")
    with pytest.raises(MsdeError, match="^no bonds of any of 2 molecules: no positions$"):
        bonds_of_file(checkpoint, tmp_path / "m.csv", tmp_path / "m.sdf", BondOptions())
    assert not list(tmp_path.glob("*m.sdf*"))


def test_nameless_molecules_have_the_line_they_stood_in(checkpoint, tmp_path):
    frames = [xyz(geometry("CO")), BROKEN, xyz(geometry("CC=O"))]
    (tmp_path / "m.xyz").write_text("".join(frames))
    bonds_of_file(checkpoint, tmp_path / "m.xyz", tmp_path / "m.sdf", BondOptions())
    found = [mol.GetProp("line") for mol in Chem.SDMolSupplier(str(tmp_path / "m.sdf"))]
    lines = (tmp_path / "m.xyz").read_text().splitlines()
    assert [lines[int(line) - 1] for line in found] == ["6", "7"]  # where the frames begin


def test_an_empty_file_is_one_line(checkpoint, tmp_path):
    (tmp_path / "m.xyz").write_text("")
    with pytest.raises(MsdeError, match="no molecules in .*: it is empty"):
        bonds_of_file(checkpoint, tmp_path / "m.xyz", tmp_path / "m.sdf", BondOptions())
    assert not (tmp_path / "m.sdf").exists()


def test_every_method_has_a_row_for_each_noise(checkpoint, tmp_path):
    records = [make_record(s, k, keep_hydrogens=True) for k, s in enumerate(["CO", "CC=O"], 1)]
    references = write_data_set(tmp_path / "data", records)
    options = BondOptions("dpm_solver_2m", steps=4)
    text = compare_bonds(checkpoint, references, tmp_path / "r.json", options, noises=(0.0, 0.5))
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    clean = {row["method"]: row for row in rows if row["noise"] == 0}
    assert len(rows) == 2 * len(clean) == len(text.splitlines()) - 4
    for method in ("msde, classifier", "RDKit DetermineBonds"):
        assert clean[method]["exact"] == clean[method]["F1 with orders"] == 1
    assert all(row["exact"] < 1 for row in rows if row["noise"] and "RDKit" in row["method"])


@pytest.mark.parametrize(
    "smiles", ["Cc1ccccc1C(=O)O", "CC(C)O", "N#Cc1c[nH]c2ccccc12", "C[N+](C)(C)C"]
)
def test_a_scaffold_does_not_depend_on_hydrogens(smiles):
    forms = [mol_from_record(make_record(smiles, 1, keep)) for keep in (False, True)]
    assert scaffold_of(forms[0]) == scaffold_of(forms[1])


def test_bonds_of_a_drawing_are_refused_and_those_of_a_planar_molecule_found(
    checkpoint, tmp_path, capsys
):
    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    drawing = Chem.MolToMolBlock(mol) + "$$$$\n"
    given = geometry("C=C")
    planar = given.pos - given.pos.mean(0)
    planar = planar @ np.linalg.svd(planar)[2].T * [1, 1, 0]
    mol = Chem.AddHs(Chem.MolFromSmiles("C=C"))
    conformer = Chem.Conformer(6)
    conformer.SetPositions(planar)
    mol.AddConformer(conformer)
    (tmp_path / "m.sdf").write_text(f"{drawing}{Chem.MolToMolBlock(mol)}$$$$\n")
    output = tmp_path / "b.sdf"
    bonds_of_file(checkpoint, tmp_path / "m.sdf", output, BondOptions())
    said = capsys.readouterr()
    assert "no bonds of line 1: a flat drawing, no positions" in said.err
    assert "bonds of 1 of 2 molecules" in said.out
    assert smiles_in(output) == ["C=C"]


def test_notes_of_the_reader_stand_beside_bonds(checkpoint, tmp_path, capsys):
    mol = Chem.AddHs(Chem.MolFromSmiles("[13CH3]O"))
    conformer = Chem.Conformer(6)
    conformer.SetPositions(geometry("CO").pos)
    mol.AddConformer(conformer)
    (tmp_path / "m.sdf").write_text(f"{Chem.MolToMolBlock(mol)}$$$$\n")
    bonds_of_file(checkpoint, tmp_path / "m.sdf", tmp_path / "b.sdf", BondOptions())
    assert "line 1 bonds found, but: isotopes are not stored: 1 13C" in capsys.readouterr().err
    (found,) = Chem.SDMolSupplier(str(tmp_path / "b.sdf"))
    assert found.GetProp("note") == "isotopes are not stored: 1 13C"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bonds", "--starts", "noise"], "unrecognized arguments: --starts noise"),
        (["bonds", "--pictures", "d"], "unrecognized arguments: --pictures d"),
        (["conformers", "--types"], "unrecognized arguments: --types"),
        (["--noise", "0.1"], "unrecognized arguments: --noise 0.1"),
        (["bonds", "--sampler", "classifier"], "nowhere cannot be read: it does not exist"),
        ([], "nowhere cannot be read: it does not exist"),
    ],
)
def test_options_of_the_other_comparison_are_refused(words, message, monkeypatch):
    files = ["--checkpoint", "nowhere", "--references", "data", "--output", "r.json"]
    monkeypatch.setattr("sys.argv", ["evaluate_samples.py", *words, *files])
    with pytest.raises(MsdeError, match=message):
        evaluate_samples.main()


def test_rows_that_say_nothing_are_told(checkpoint, tmp_path):
    records = [make_record("CO", 1), make_record("CC=O", 2, keep_hydrogens=True)]
    records[1] = replace(records[1], origin=Origin.BONDS_PERCEIVED)
    references = write_data_set(tmp_path / "data", records)
    text = compare_bonds(checkpoint, references, tmp_path / "r.json", BondOptions(), noises=(0.0,))
    said = [
        "1 of 2 references have bonds that RDKit perceived: its rule is measured against itself.",
        "1 of 2 references lack hydrogens, which RDKit DetermineBonds needs: its row says nothing.",
    ]
    assert text.splitlines()[-2:] == said
    assert json.loads((tmp_path / "r.json").read_text())["remarks"] == said
