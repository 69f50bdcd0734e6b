"""launch/sample.py bonds and the comparison with rules: files in, SD files and a table out."""

import json

import numpy as np
import pytest
from rdkit import Chem

from fixtures.bonds import geometry, saved_bond_model, xyz
from fixtures.commands import run_here
from msde.data_tools.convert import convert
from msde.data_tools.models.bond_comparison import compare_bonds
from msde.data_tools.options import Options
from msde.sampling.bonds import BondOptions, Geometry


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved_bond_model(tmp_path_factory)


def find(weights, path, output, *more):
    arguments = ["--checkpoint", weights, "--input", path, "--output", output, *more]
    return run_here("msde.launch.sample", "bonds", *arguments)


def test_a_file_becomes_molecules_and_each_bad_frame_is_told(weights, tmp_path):
    good = geometry("CO")
    nowhere, spot = good.pos.copy(), good.pos.copy()
    nowhere[1, 2], spot[1] = np.nan, spot[0]
    frames = [
        xyz(good),
        xyz(Geometry(good.z, nowhere)),
        xyz(Geometry(good.z, spot)),
        xyz(good).replace("C ", "Xx "),
        xyz(Geometry(np.ones(500, int), np.random.default_rng(0).normal(size=(500, 3)) * 30)),
        xyz(geometry("C=C")),
    ]
    (tmp_path / "m.xyz").write_text("".join(frames))
    done = find(weights, tmp_path / "m.xyz", tmp_path / "m.sdf")
    assert done.returncode == 0, done.stderr
    assert "bonds of 2 of 6 molecules" in done.stdout
    told = [line for line in done.stderr.splitlines() if line.startswith("no bonds of")]
    assert len(told) == 4 and "Traceback" not in done.stderr
    for line, part in zip(told, ("not finite", "on one spot", "Xx", "500 atoms"), strict=True):
        assert part in line
    found = [mol for mol in Chem.SDMolSupplier(str(tmp_path / "m.sdf"), removeHs=False) if mol]
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in found] == ["CO", "C=C"]
    assert np.allclose(found[0].GetConformer().GetPositions(), good.pos, atol=1e-4)


def test_an_empty_file_is_one_line(weights, tmp_path):
    (tmp_path / "m.xyz").write_text("")
    done = find(weights, tmp_path / "m.xyz", tmp_path / "m.sdf")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not (tmp_path / "m.sdf").exists()


def test_a_charge_that_no_bonds_fit_is_told(weights, tmp_path):
    (tmp_path / "m.xyz").write_text(xyz(geometry("C")))
    done = find(weights, tmp_path / "m.xyz", tmp_path / "m.sdf", "--charge", 3)
    assert done.returncode == 0 and "bonds of 0 of 1" in done.stdout
    assert "formal charges add up to 2, expected 3" in done.stderr


def test_every_method_has_a_row_for_each_noise(weights, tmp_path):
    (tmp_path / "m.smi").write_text("CO\nC=C\nCC=O\n")
    options = Options(conformers=1, keep_hydrogens=True)
    convert([tmp_path / "m.smi"], tmp_path / "data", "smiles", options=options)
    text = compare_bonds(
        weights, tmp_path / "data", tmp_path / "r.json", BondOptions(), noises=(0.0, 0.4)
    )
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    by_name = {(row["method"], row["noise"]): row for row in rows}
    clean, noisy = (by_name["RDKit DetermineBonds", noise] for noise in (0.0, 0.4))
    assert clean["exact"] == 1 and clean["F1 with orders"] == 1
    assert noisy["F1"] < 1
    assert by_name["msde, classifier", 0.0]["exact"] == 1
    assert "3 references" in text
