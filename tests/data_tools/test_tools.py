"""The tools for data sets that are there already: verify, describe, merge, reshard, export."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem

from fixtures.molecules import NCI, SMILES
from msde.chem.rebuild import mol_from_record
from msde.chem.record import Origin, record_from_mol
from msde.chem.vocabulary import MoleculeError
from msde.data import shards
from msde.data.codec import columns_from_records
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.describe import describe
from msde.data_tools.export import export
from msde.data_tools.merge import merge
from msde.data_tools.pipeline.summary import statistics
from msde.data_tools.readers import Options
from msde.data_tools.reshard import reshard
from msde.data_tools.verify import molecule_problems, verify
from msde.errors import MsdeError
from msde.files import file_sha256

FIELDS = ("z", "x", "cip", "bond_index", "bond_attr", "extended_source", "extended_degree")


def run(tool, *arguments):
    command = [sys.executable, "-m", f"msde.data_tools.{tool}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def molecules(folder):
    for columns in ShardDataset(folder).blocks():
        yield from (columns.record(place) for place in range(len(columns)))


def write(folder, records, labels=(), **facts):
    """Write records as a data set of one shard."""
    folder.mkdir()
    entry = shards.write_shard(folder, 0, columns_from_records(records))
    named = [{"name": name, "unit": unit} for name, unit in labels]
    shards.write_manifest(folder, [entry], {"labels": named, **facts})
    return folder


def labelled(records, *values, shift=0):
    y = np.array(values, "<f8")
    return [dataclasses.replace(r, uid=r.uid ^ shift, y=y + n) for n, r in enumerate(records)]


@pytest.fixture
def copied(shard_dir, tmp_path):
    data = shutil.copytree(shard_dir, tmp_path / "data")
    (data / "shard-00000.lmdb").chmod(0o644)
    return data


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_an_intact_data_set_has_no_problems(shard_dir):
    result = run("verify", shard_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("molecules in 1 shards, all as written\n")
    assert run("verify", shard_dir, "--quick").returncode == 0


def test_every_problem_is_named_with_shard_and_block(copied):
    shard, index = copied / "shard-00000.lmdb", copied / "shard-00000.idx"
    starts = _starts(shard)
    damage(shard, starts[2] + 700)
    damage(shard, starts[4] + 1)
    damage(index, 12 * 16 * 3)
    (copied / "shard-00007.lmdb").write_bytes(b"")
    result = run("verify", copied)
    assert result.returncode == 6 and result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{copied / 'shard-00007.lmdb'} is not in the manifest",
        f"{index} is damaged (SHA-256 differs; block 3)",
        f"{shard}, block 2: block is damaged (CRC32 differs)",
        f"{shard}, block 4: not a molecule block (magic bytes missing)",
    ]
    quick = run("verify", copied, "--quick")
    assert quick.returncode == 6 and "block 2:" not in quick.stdout


def _starts(path):
    data, found = path.read_bytes(), []
    at = data.find(b"MSDB")
    while at >= 0:
        found.append(at)
        at = data.find(b"MSDB", at + 4)
    return found


@pytest.mark.parametrize("quick", [False, True])
def test_files_that_are_cut_or_gone_are_named(copied, quick):
    os.truncate(copied / "shard-00000.lmdb", 8192)
    (copied / "shard-00000.idx").unlink()
    problems = list(verify(copied, quick))
    assert any("shard-00000.lmdb has 8192 bytes" in p for p in problems)
    assert any("shard-00000.idx has no file" in p for p in problems)


def test_no_data_set_is_a_mistake_not_damage(tmp_path):
    result = run("verify", tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "at", "value", "said"),
    [
        ("x", (0, 3), 12, "atom features"),
        ("cip", 0, 5, "CIP labels"),
        ("bond_attr", (3, 0), 5, "bond features"),
        ("bond_index", (3, 1), 0, "bonds out of order"),
        ("bond_index", (3, 1), 200, "bonds out of order"),
        ("extended_degree", 5, 99, "degrees"),
        ("extended_source", 3, 200, "extended edges out of range"),
        ("extended_source", 3, 0, "extended edges"),
        ("pos", (4, 1), np.nan, "positions"),
        ("pos", (4, 1), 50, "not centred"),
        ("origin", 1, 4, "geometry that is not"),
        ("num_conformers", 0, 0, "counts"),
    ],
)
def test_fields_that_make_no_sense_are_found(records, column, at, value, said):
    columns = columns_from_records(records)
    assert list(molecule_problems(columns)) == []
    changed = getattr(columns, column).copy()
    changed[at] = value
    found = list(molecule_problems(dataclasses.replace(columns, **{column: changed})))
    assert any(said in what for what, _ in found), found


def test_description_says_what_the_data_hold(records, tmp_path):
    some = [dataclasses.replace(r, y=np.array([n, np.nan])) for n, r in enumerate(records)]
    data = write(tmp_path / "data", some, [("gap", "eV"), ("mu", "D")])
    text = "\n".join(describe(statistics(data)))
    atoms = [len(r.z) for r in records]
    assert "10 molecules in 1 shards" in text and "all looked at" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("atoms"))
    assert row[1:] == [f"{np.mean(atoms):g}", "1", f"{np.median(atoms):g}", f"{max(atoms)}"]
    row = next(line.split() for line in text.splitlines() if line.startswith("gap [eV]"))
    assert row[2:5] == ["10", "0", "4.5"]
    row = next(line.split() for line in text.splitlines() if line.startswith("mu [D]"))
    assert row[2:] == ["0", "10", "-", "-", "-", "-"]
    assert "10 conformers made" in text
    stats = statistics(data)
    assert stats.elements["C"] == sum((r.z == 6).sum() for r in records)
    assert 1.3 < stats.bond_lengths["C:C"].mean() < 1.45


def test_large_data_sets_are_sampled(shard_dir, monkeypatch):
    monkeypatch.setattr("msde.data_tools.pipeline.summary.SAMPLE_BLOCKS", 3)
    stats = statistics(shard_dir)
    assert stats.sampled < stats.manifest["molecules"]
    assert "in evenly spaced blocks, looked at" in describe(stats)[0]


def test_a_picture_is_drawn(shard_dir, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = run("describe", shard_dir, "--output", tmp_path / "picture.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_merged_data_sets_hold_all_molecules(records, tmp_path):
    first = write(tmp_path / "a", labelled(records[:4], 1, 2), [("gap", "eV"), ("mu", "D")])
    second = write(tmp_path / "b", labelled(records[4:], 4, 3), [("mu", "D"), ("gap", "eV")])
    assert merge([first, second], tmp_path / "out") == len(records)
    merged = list(molecules(tmp_path / "out"))
    assert [m.uid for m in merged] == [r.uid for r in records]
    assert merged[5].y.tolist() == [4, 5]  # gap, mu as in the first
    assert list(verify(tmp_path / "out")) == []


def test_labels_that_differ_are_an_error_or_united(records, tmp_path):
    first = write(tmp_path / "a", labelled(records[:4], 1), [("gap", "eV")])
    second = write(tmp_path / "b", labelled(records[4:], 4), [("mu", "D")])
    with pytest.raises(MsdeError, match=r"differ in their labels \(gap, mu\); give --labels union"):
        merge([first, second], tmp_path / "out")
    merge([first, second], tmp_path / "out", labels="union")
    merged = list(molecules(tmp_path / "out"))
    assert np.array_equal(merged[0].y, [1, np.nan], equal_nan=True)
    assert np.array_equal(merged[-1].y, [np.nan, 4 + 5], equal_nan=True)
    third = write(tmp_path / "c", labelled(records[4:], 4), [("gap", "Ha")])
    with pytest.raises(MsdeError, match="label gap is in 'eV', but in 'Ha'"):
        merge([first, third], tmp_path / "other", labels="union")


def test_molecules_that_are_there_twice_are_an_error_or_skipped(records, tmp_path):
    first = write(tmp_path / "a", records[:6])
    second = write(tmp_path / "b", records[4:])
    with pytest.raises(MsdeError, match="2 molecules have the id of another one"):
        merge([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert merge([first, second], tmp_path / "out", skip_duplicates=True) == len(records)
    assert [m.uid for m in molecules(tmp_path / "out")] == [r.uid for r in records]


def test_resharding_keeps_molecules_and_comes_back(shard_dir, tmp_path):
    count = reshard(shard_dir, tmp_path / "small", shard_molecules=37, block_molecules=5)
    dataset = ShardDataset(tmp_path / "small")
    assert [s["molecules"] for s in dataset.manifest["shards"]][:-1] == [37] * ((count - 1) // 37)
    assert list(verify(tmp_path / "small")) == []
    reshard(tmp_path / "small", tmp_path / "back", block_molecules=16)
    for name in os.listdir(shard_dir):
        if not name.startswith("manifest"):
            assert file_sha256(tmp_path / "back" / name) == file_sha256(shard_dir / name), name
    assert ShardDataset(tmp_path / "back").digest == ShardDataset(shard_dir).digest


def test_a_run_that_was_killed_is_started_over(shard_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-00009.lmdb").write_bytes(b"of a run that did not end")
    (out / ".shard-00001.lmdb.tmp").write_bytes(b"")
    reshard(shard_dir, out, shard_molecules=100)
    assert not (out / "shard-00009.lmdb").exists() and list(verify(out)) == []
    for taken in (out, shard_dir):
        with pytest.raises(MsdeError, match="holds a data set already|is one of the inputs"):
            reshard(shard_dir, taken)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"")
    with pytest.raises(MsdeError, match=r"is not empty \(cat\.png is there\)"):
        reshard(shard_dir, tmp_path / "photos")


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


def test_all_conformers_are_exported(tmp_path):
    (tmp_path / "m.smi").write_text("CCCCO butanol\n")
    options = Options(conformers=3, keep_hydrogens=True, group_conformers=True)
    convert([tmp_path / "m.smi"], tmp_path / "a", options=options)
    export(tmp_path / "a", tmp_path / "m.sdf.gz")
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


def test_what_vocabularies_lack_is_left_out_and_counted(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n[Fe+6] ferrate\n")
    convert([tmp_path / "m.smi"], tmp_path / "a")
    result = run("export", tmp_path / "a", "--output", tmp_path / "m.sdf")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'm.sdf'}: 1 molecules",
        "  1 left out: formal_charge is one that the vocabulary does not list",
    ]
    result = run("export", tmp_path / "a", "--output", tmp_path / "m.mol2")
    assert result.returncode == 2 and "should end in .sdf" in result.stderr


def test_rebuilt_molecules_have_the_smiles_of_the_originals():
    wrong = []
    for line in NCI.read_text().splitlines()[:400]:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None:
            continue
        record = record_from_mol(mol, 1, topology_only=True)
        try:
            rebuilt = mol_from_record(record)
        except MoleculeError:
            continue
        if Chem.MolToSmiles(rebuilt) != Chem.MolToSmiles(mol):
            wrong.append(line)
    assert wrong == []


def test_export_and_describe_take_no_more_than_they_are_asked(shard_dir, tmp_path):
    assert export(shard_dir, tmp_path / "m.sdf", limit=5) == {"written": 5}
    assert (tmp_path / "m.sdf").read_text().count("$$$$") == 5
    manifest = json.loads((shard_dir / "manifest.json").read_text())
    assert manifest["counts"]["read"] == 150
