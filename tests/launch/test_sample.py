"""launch/sample.py: files in, SD files out."""

import gzip

import numpy as np
import pytest
from rdkit import Chem

from fixtures.commands import run_here
from fixtures.conformers import saved_model
from msde.cli import report_errors
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.models.generation import conformers_of_file
from msde.data_tools.options import Options
from msde.errors import MsdeError
from msde.launch.sample import main
from msde.sampling.conformers import ConformerOptions

INPUT = "smiles,id\nC[C@H](F)Cl,one\nnonsense,two\nC/C=C\\C,three\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_model(tmp_path_factory)


def sample(*arguments):
    return run_here("msde.launch.sample", "conformers", *arguments)


def records(path):
    data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    supplier = Chem.SDMolSupplier()
    supplier.SetData(data.decode(), removeHs=False)
    return list(supplier)


def test_a_table_becomes_an_sd_file_and_bad_rows_are_told(checkpoint, tmp_path):
    (tmp_path / "m.csv").write_text(INPUT)
    done = sample(
        "--checkpoint", checkpoint, "--input", tmp_path / "m.csv", "--output",
        tmp_path / "m.sdf.gz", "--num", 2, "--steps", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 conformers each of 2 of 3 molecules" in done.stdout
    assert "no conformers of line 3 (two): cannot be parsed" in done.stderr
    found = records(tmp_path / "m.sdf.gz")
    assert [mol.GetProp("_Name") for mol in found] == ["one", "one", "three", "three"]
    assert [mol.GetProp("sample") for mol in found] == ["1", "2"] * 2
    assert [mol.GetProp("line") for mol in found] == ["2", "2", "4", "4"]
    assert all(mol.HasProp("stereo") for mol in found)
    assert all(np.isfinite(mol.GetConformer().GetPositions()).all() for mol in found)
    assert Chem.MolToSmiles(Chem.RemoveHs(found[2]), isomericSmiles=False) == "CC=CC"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--input": "nowhere.csv"}, "nowhere.csv cannot be read: it does not exist"),
        ({"--output": "m.xyz"}, "--output m.xyz should end in .sdf or .sdf.gz"),
        ({"--sampler": "magic"}, "found 'magic', expected one of euler_maruyama, "),
        ({"--num": "0"}, "num must be at least 1"),
        ({"--candidates": "0"}, "candidates must be at least 1"),
        ({"--steps": "0"}, "steps must be at least 1"),
        ({"--std": "-1"}, "std must be positive"),
    ],
)
def test_wrong_arguments_are_one_line(checkpoint, change, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "m.csv").write_text(INPUT)
    arguments = {
        "--checkpoint": checkpoint,
        "--input": tmp_path / "m.csv",
        "--output": tmp_path / "m.sdf",
    } | change
    flat = [str(part) for pair in arguments.items() for part in pair]
    monkeypatch.setattr("sys.argv", ["sample.py", "conformers", *flat])
    with pytest.raises(SystemExit) as end:
        report_errors(main)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_a_file_without_any_result_is_an_error_and_leaves_no_file(checkpoint, tmp_path):
    given = ["--checkpoint", checkpoint, "--input", tmp_path / "m.csv", "--steps", 2]
    for text, reason in (
        ("smiles\nCC.CC\nO.O\n", "2 fragments; give each alone"),
        ('smiles\nCC.CC\nO.O\n"C C"\n', "2 fragments; give each alone (2 of them)"),
    ):
        (tmp_path / "m.csv").write_text(text)
        done = sample(*given, "--output", tmp_path / "m.sdf")
        assert done.returncode == 2 and not list(tmp_path.glob("*m.sdf*"))
        assert "no conformers of line 2: 2 fragments" in done.stderr
        last = done.stderr.splitlines()[-1]
        many = text.count("\n") - 1
        assert last == f"error: no conformers of any of {many} molecules: {reason}"


def test_conformers_of_shards_have_the_ids_of_their_molecules(checkpoint, tmp_path):
    (tmp_path / "m.smi").write_text("CCO\nCC\n")  # without names
    convert([tmp_path / "m.smi"], tmp_path / "d", options=Options(conformers=0))
    options = ConformerOptions(num=1, steps=2)
    conformers_of_file(checkpoint, tmp_path / "d", tmp_path / "m.sdf", options)
    ids = [f"{record.uid:016x}" for record in ShardDataset(tmp_path / "d").records()]
    found = records(tmp_path / "m.sdf")
    assert [mol.GetProp("uid") for mol in found] == ids and not found[0].HasProp("line")
    reading = Options(smiles_column="x")
    with pytest.raises(MsdeError, match="--smiles-column is of no use for .*a folder of shards"):
        conformers_of_file(checkpoint, tmp_path / "d", tmp_path / "m.sdf", options, options=reading)


def test_an_empty_file_is_one_line(checkpoint, tmp_path):
    (tmp_path / "m.smi").write_text("")
    with pytest.raises(MsdeError, match="no molecules"):
        conformers_of_file(
            checkpoint, tmp_path / "m.smi", tmp_path / "m.sdf", ConformerOptions(num=1)
        )
    assert not (tmp_path / "m.sdf").exists()
