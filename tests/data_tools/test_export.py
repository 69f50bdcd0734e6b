import dataclasses
import json

import numpy as np
import pytest

from fixtures.data_sets import molecules, run_tool, write_data_set
from fixtures.molecules import SMILES, make_record
from fixtures.readers import embedded, numbers, positions
from msde.chem.record import Origin
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert
from msde.data_tools.export import export
from msde.data_tools.readers import Options

FIELDS = ("z", "x", "cip", "bond_index", "bond_attr", "extended_source", "extended_degree")


def check_same(one, other):
    for field in FIELDS:
        assert np.array_equal(getattr(one, field), getattr(other, field)), (field, one.name)
    assert np.abs(one.pos - other.pos).max() < 2e-4
    assert np.array_equal(one.y, other.y, equal_nan=True)
    assert one.name == other.name


@pytest.mark.parametrize("keep_hydrogens", [True, False])
def test_exported_molecules_come_back_the_same(tmp_path, keep_hydrogens):
    smiles = [
        *SMILES,
        "F/C(Cl)=C(/Br)CC",
        "c1cc[nH]c1",
        "C[N+](=O)[O-]",
        "C[NH3+].[Cl-]",
        "OS(=O)(=O)O",
    ]
    smiles += ["C[C@H]1CC[C@@H](O)C1", "C[Si](C)(C)C#N", "[CH3]", "O=[N+]([O-])c1ccccc1"]
    (tmp_path / "m.csv").write_text(
        "smiles,name,gap,mu\n" + "".join(f"{s},n {n},{n / 7},\n" for n, s in enumerate(smiles))
    )
    options = Options(
        keep_hydrogens=keep_hydrogens, keep_radicals=True, label_columns=("gap", "mu")
    )
    convert([tmp_path / "m.csv"], tmp_path / "a", "smiles", options=options)
    assert export(tmp_path / "a", tmp_path / "m.sdf") == {"written": len(smiles)}
    options = dataclasses.replace(options, label_columns=("gap",))
    convert([tmp_path / "m.sdf"], tmp_path / "b", "sdf", options=options)
    pairs = list(zip(molecules(tmp_path / "a"), molecules(tmp_path / "b"), strict=True))
    assert len(pairs) == len(smiles)
    for one, other in pairs:
        check_same(dataclasses.replace(one, y=one.y[:1]), other)


@pytest.mark.parametrize("keep_hydrogens", [True, False])
def test_isotopes_and_hydrogens_that_stay_come_back(tmp_path, keep_hydrogens):
    smiles = ["[2H]C([2H])([2H])O", "[13CH3][C@H](C)O", "C[C@]([2H])([H])O", "[2H]C1=CC=CC=C1"]
    smiles += [
        "[H]/N=C/C",
        "[H]/N=C(/C)CC",
        "[2H]/N=C/CO",
        "[2H]O[2H]",
        "CO.[2H]O",
        "O[C@]([2H])(C)CC",
    ]
    (tmp_path / "m.smi").write_text("".join(f"{s} n{n}\n" for n, s in enumerate(smiles)))
    options = Options(keep_hydrogens=keep_hydrogens)
    convert([tmp_path / "m.smi"], tmp_path / "a", "smiles", options=options)
    assert export(tmp_path / "a", tmp_path / "m.sdf") == {"written": len(smiles)}
    convert([tmp_path / "m.sdf"], tmp_path / "b", "sdf", options=options)
    pairs = list(zip(molecules(tmp_path / "a"), molecules(tmp_path / "b"), strict=True))
    assert len(pairs) == len(smiles)
    for one, other in pairs:
        check_same(one, other)
    notes = [json.loads(line)["reason"] for line in open(tmp_path / "a/notes.jsonl")]
    assert len(notes) == sum("[2H]" in s or "[13C" in s for s in smiles)
    assert not (tmp_path / "b/notes.jsonl").read_text()


def test_all_conformers_are_exported(tmp_path):
    (tmp_path / "m.smi").write_text("CCCCO butanol\n")
    options = Options(conformers=3, keep_hydrogens=True)
    convert([tmp_path / "m.smi"], tmp_path / "a", options=options)
    export(tmp_path / "a", tmp_path / "m.sdf.gz")
    options = Options(group_conformers=True, keep_hydrogens=True)
    convert([tmp_path / "m.sdf.gz"], tmp_path / "b", options=options)
    (one,), (other,) = molecules(tmp_path / "a"), molecules(tmp_path / "b")
    assert len(one.pos) == 3
    check_same(one, other)


def test_topology_alone_is_drawn_and_comes_back(tmp_path):
    smiles = ["C[C@H](N)C(=O)O", "F/C(Cl)=C(/Br)CC", "c1cc[nH]c1", "CC(=O)[O-].[Na+]"]
    (tmp_path / "m.smi").write_text("".join(f"{s} n{n}\n" for n, s in enumerate(smiles)))
    convert([tmp_path / "m.smi"], tmp_path / "a", options=Options(conformers=0))
    export(tmp_path / "a", tmp_path / "m.sdf")
    convert([tmp_path / "m.sdf"], tmp_path / "b", options=Options(conformers=0))
    for one, other in zip(molecules(tmp_path / "a"), molecules(tmp_path / "b"), strict=True):
        check_same(one, other)
        assert other.origin == Origin.NO_GEOMETRY


def test_large_molecules_are_exported_in_the_newer_format(tmp_path):
    (tmp_path / "m.smi").write_text("C" * 500 + "/C=C/" + "C" * 500 + " long\n")
    options = Options(conformers=0, max_atoms=2000)
    convert([tmp_path / "m.smi"], tmp_path / "a", options=options)
    export(tmp_path / "a", tmp_path / "m.sdf")
    assert "V3000" in (tmp_path / "m.sdf").read_text()
    convert([tmp_path / "m.sdf"], tmp_path / "b", options=options)
    (one,), (other,) = molecules(tmp_path / "a"), molecules(tmp_path / "b")
    check_same(one, other)


def test_forces_and_units_that_an_sd_file_does_not_hold_are_said(tmp_path):
    mol = embedded("CCO", 3)
    arrays = {"z": numbers(mol), "R": positions(mol), "E": np.zeros(3), "F": np.ones((3, 9, 3))}
    np.savez(tmp_path / "m.npz", **arrays)
    convert([tmp_path / "m.npz"], tmp_path / "a")
    found = run_tool("export", tmp_path / "a", "--output", tmp_path / "m.sdf", "--limit", 2)
    assert found.stdout.splitlines() == [
        f"{tmp_path / 'm.sdf'}: 2 molecules",
        "  not written: forces of 2 molecules",
        "  not written: units of 1 labels: energy [kcal/mol]",
    ]


def test_molecules_outside_the_vocabulary_are_skipped_and_counted(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n[Fe+6] ferrate\n")
    convert([tmp_path / "m.smi"], tmp_path / "a")
    result = run_tool("export", tmp_path / "a", "--output", tmp_path / "m.sdf")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'm.sdf'}: 1 molecules",
        "  1 skipped: formal_charge is one that the vocabulary does not list",
        f"  which ones: {tmp_path / 'm.sdf.skipped.jsonl'}",
    ]
    (line,) = (tmp_path / "m.sdf.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "ferrate" and json.loads(line)["number"] == 2
    assert "formal_charge of atom 0 (Z = 26)" in json.loads(line)["reason"]
    convert([tmp_path / "m.smi"], tmp_path / "one", limit=1)
    export(tmp_path / "one", tmp_path / "m.sdf")
    assert not (tmp_path / "m.sdf.skipped.jsonl").exists()
    result = run_tool("export", tmp_path / "a", "--output", tmp_path / "m.mol2")
    assert result.returncode == 2 and "should end in .sdf" in result.stderr


def test_names_that_look_like_separators_come_back(tmp_path):
    names = [
        "$$$$",
        "> <gap>",
        "M  END",
        "two  words",
        "two\nlines",
        "$$$$ x",
        "\0zero",
        "\u2028",
        "",
    ]
    records = []
    for number, name in enumerate(names):
        y = np.array([number / 7, number / 3, 1e-300, 2.0, np.nan, -0.0])
        records.append(dataclasses.replace(make_record("CCO", number + 1), name=name, y=y))
    labels = ["a > b <c>", "<x> (1)", "two\nlines", "two lines", "", "> <gap>"]
    root = write_data_set(tmp_path / "a", records, [(label, "eV") for label in labels])
    assert export(root, tmp_path / "m.sdf") == {"written": len(names)}
    convert([tmp_path / "m.sdf"], tmp_path / "b")
    found = [label["name"] for label in read_manifest(tmp_path / "b")["labels"]]
    assert found == ["a > b <c>", "<x> (1)", "two lines", "two lines (4)", "> <gap>"]
    for one, other in zip(records, molecules(tmp_path / "b"), strict=True):
        assert other.name == one.name.replace("\n", " ").replace("\0", " ").strip()
        assert np.array_equal(other.y, np.delete(one.y, 4))


def test_export_stops_at_the_limit(shard_dir, tmp_path):
    assert export(shard_dir, tmp_path / "m.sdf", limit=5) == {"written": 5}
    assert (tmp_path / "m.sdf").read_text().count("$$$$") == 5
    manifest = json.loads((shard_dir / "manifest.json").read_text())
    assert manifest["counts"]["read"] == 150


def test_atropisomers_are_exported_without_their_axis_and_have_a_note(tmp_path):
    table = "smiles,id\nc1ccc2c(c1)ccc(O)c2-c1c(O)ccc2ccccc12 |wD:10.10|,binol\n"
    (tmp_path / "a.csv").write_text(table)
    convert([tmp_path / "a.csv"], tmp_path / "d", options=Options(conformers=0))
    assert "M or P of the bond of atoms" in (tmp_path / "d/notes.jsonl").read_text()
    assert export(tmp_path / "d", tmp_path / "x.sdf")["written"] == 1
