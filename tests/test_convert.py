import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import NCI
from msde.data_tools.convert import convert
from rdkit import Chem

from msde import molecule
from msde.errors import MsdeError
from msde.files import file_sha256
from msde.shards import ShardDataset


def run(*arguments):
    command = [sys.executable, "-m", "msde.data_tools.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def hashes(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def test_output_does_not_depend_on_the_number_of_processes(tmp_path):
    for processes in (1, 3):
        convert([NCI], tmp_path / str(processes), "smiles", processes=processes, limit=60)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")


def test_rejects_are_listed_with_reason_and_line(tmp_path):
    source = tmp_path / "mixed.smi"
    source.write_text("CCO ethanol\n\n# comment\nC(C broken\nCN(C)(C)(C)C\tpenta valent\nCO\n")
    counts = convert([source], tmp_path / "out", "smiles")
    assert counts == {"read": 4, "converted": 2, "rejected": 2, "outside_vocabulary": 0}
    rejects = [json.loads(line) for line in open(tmp_path / "out/rejects.jsonl")]
    assert [(r["line"], r["name"]) for r in rejects] == [(4, "broken"), (5, "penta valent")]
    assert "valence" in rejects[1]["reason"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["rejects_by_reason"] == {"cannot be parsed": 2}


def test_compressed_sdf_keeps_coordinates_stereo_and_title(tmp_path):
    mol = molecule.embed_conformer(Chem.MolFromSmiles("C[C@H](N)C(=O)O"), 1, keep_hydrogens=True)
    mol.SetProp("_Name", "alanine")
    block = Chem.MolToMolBlock(mol) + "$$$$\n"
    flat = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")) + "$$$$\n"
    with gzip.open(tmp_path / "m.sdf.gz", "wt") as file:
        file.write(block + flat + "nonsense\n$$$$\n" + block)
    counts = convert([tmp_path / "m.sdf.gz"], tmp_path / "out", "sdf")
    assert counts == {"read": 4, "converted": 2, "rejected": 2, "outside_vocabulary": 0}
    dataset = ShardDataset(tmp_path / "out")
    record = dataset.read_block(0).record(0)
    assert record.name == "alanine"
    assert record.cip.max() > 0
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    pos = mol.GetConformer().GetPositions()[heavy]
    assert np.abs(record.pos[0] - (pos - pos.mean(0))).max() < 1e-3
    rejects = [json.loads(line) for line in open(tmp_path / "out/rejects.jsonl")]
    assert "no 3D conformer" in rejects[0]["reason"]


def test_finished_data_sets_are_not_overwritten(shard_dir):
    before = hashes(shard_dir)
    result = run(NCI, "--format", "smiles", "--output", shard_dir, "--limit", 2)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "holds a data set already" in result.stderr
    assert hashes(shard_dir) == before


def test_missing_input_writes_nothing(tmp_path):
    result = run(tmp_path / "no.smi", "--format", "smiles", "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr == f"error: input {tmp_path / 'no.smi'} is not a file\n"
    assert not (tmp_path / "out").exists()


def test_nothing_convertible_leaves_no_data_set(tmp_path):
    (tmp_path / "bad.smi").write_text("C(C\n")
    with pytest.raises(MsdeError, match="none of 1 molecules"):
        convert([tmp_path / "bad.smi"], tmp_path / "out", "smiles")
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_same_molecule_twice_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "m.smi").write_text("CCO\n")
    with pytest.raises(MsdeError, match=r"two inputs are named m\.smi"):
        convert([tmp_path / "m.smi", tmp_path / "a/m.smi"], tmp_path / "out", "smiles")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "must be at least 1"),
        (["--limit", "-1"], "must be at least 1"),
        (["--format", "smile"], "invalid choice"),
        (["TORN"], "cannot be read"),
        (["EMPTY"], "no molecules in"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(tmp_path, arguments, message):
    (tmp_path / "good.smi").write_text("CCO\nCO\n")
    torn = gzip.compress(b"CCO\n" * 1000)[:20]
    (tmp_path / "torn.smi.gz").write_bytes(torn)
    (tmp_path / "empty.smi").write_text("\n")
    names = {"TORN": "torn.smi.gz", "EMPTY": "empty.smi"}
    source = tmp_path / next((names[a] for a in arguments if a in names), "good.smi")
    options = [a for a in arguments if a not in names]
    result = run(source, "--format", "smiles", "--output", tmp_path / "out", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_whatever_a_molecule_does_the_others_go_on(tmp_path):
    (tmp_path / "m.csv").write_text('id,smiles\n1\n2,"[H]O[H] |(0,0,0;0,0,1;0,1,1)|"\n')
    counts = convert([tmp_path / "m.csv"], tmp_path / "out", "cxsmiles")
    assert counts == {"read": 2, "converted": 1, "rejected": 1, "outside_vocabulary": 0}


def test_large_molecules_are_rejected_by_name(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\nCCCCCC\n")
    convert([tmp_path / "m.smi"], tmp_path / "out", "smiles", max_atoms=5)
    rejects = (tmp_path / "out/rejects.jsonl").read_text()
    assert "more than 5 atoms: 6" in rejects


def test_elements_and_charges_outside_the_vocabulary_are_kept_and_told(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n[Fe+6] ferrate\n")
    counts = convert([tmp_path / "m.smi"], tmp_path / "out", "smiles")
    assert counts == {"read": 2, "converted": 2, "rejected": 0, "outside_vocabulary": 1}
    (note,) = [json.loads(line) for line in open(tmp_path / "out/notes.jsonl")]
    assert note["line"] == 2 and note["name"] == "ferrate"
    assert note["reason"] == "not seen by the model: formal_charge of atom 0 (Z = 26)"
