import gzip
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rdkit import Chem

from fixtures.conversions import SMALL_SHARDS, hashes, run, start
from fixtures.molecules import NCI
from msde.chem.conformers import embed_conformer
from msde.chem.record import Origin
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.readers import Options
from msde.errors import MsdeError


def test_output_does_not_depend_on_the_number_of_processes(tmp_path):
    for processes in (1, 3):
        convert([NCI], tmp_path / str(processes), "smiles", processes=processes, limit=60)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")


def test_output_does_not_depend_on_the_executor(flat, tmp_path, small_shards):
    with ThreadPoolExecutor(2) as executor:
        convert(
            [flat / "flat.smi"], tmp_path / "out", "smiles",
            options=Options(conformers=0), executor=executor,
        )  # fmt: skip
    assert hashes(tmp_path / "out") == hashes(flat / "out")


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_shards(flat, tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, silence_logs=50) as cluster:
        address = f"dask:{cluster.scheduler_address}"
        out = ["--output", tmp_path / "out", "--conformers", 0, "--executor", address]
        process = start(flat / "flat.smi", *out)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert hashes(tmp_path / "out") == hashes(flat / "out")


def test_mpi_makes_the_same_shards(flat, tmp_path):
    pytest.importorskip("mpi4py.futures", reason="mpi4py is not installed", exc_type=ImportError)
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if not os.path.exists(mpiexec):
        pytest.skip("mpiexec is not installed beside python")
    (tmp_path / "small_shards.py").write_text(SMALL_SHARDS)
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", "small_shards.py"]
    command += [flat / "flat.smi", "--output", "out", "--conformers", "0", "--executor", "mpi"]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert hashes(tmp_path / "out") == hashes(flat / "out")


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("dusk", "expected local, dask:ADDRESS or mpi"),
        ("dask:tcp://127.0.0.1:1", "no Dask scheduler answers"),
    ],
)
def test_missing_executors_are_an_error_of_one_line(flat, tmp_path, executor, message, monkeypatch):
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr("msde.data_tools.pipeline.executors.CONNECT_SECONDS", 1)
    out = ["--output", tmp_path / "out", "--executor", executor]
    result = run(flat / "flat.smi", "--conformers", 0, *out)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_logs_get_a_line_from_time_to_time(flat, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("msde.data_tools.pipeline.progress.SECONDS", 0)
    with caplog.at_level("INFO"):
        convert([flat / "flat.smi"], tmp_path / "out", options=Options(conformers=0))
    assert re.fullmatch(
        r"1,500 molecules, [\d,]+/s; rejected: 30 cannot be parsed.*", caplog.messages[-1]
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_an_error_of_one_line(flat, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MsdeError, match="cannot be written"):
        convert([flat / "flat.smi"], tmp_path / "out", options=Options(conformers=0))


def test_an_output_that_is_a_file_is_an_error_of_one_line(flat, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(MsdeError, match="out cannot be written: "):
        convert([flat / "flat.smi"], tmp_path / "out", options=Options(conformers=0))


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
    assert manifest["origin"] == {"bonds_perceived": 0, "conformers_made": 2, "no_geometry": 0}


def test_more_rejects_than_allowed_are_an_error_until_the_limit_is_raised(tmp_path):
    source = tmp_path / "mixed.smi"
    source.write_text("CCO\nC(C\nCN(C)(C)(C)C\nCO\n")
    out = ["--output", tmp_path / "out", "--max-rejects"]
    result = run(source, *out, 0.25)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "2 of 4 molecules were rejected, 50.0% where --max-rejects allows 25.0%" in result.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    assert run(source, *out, 0.5).returncode == 0
    assert not (tmp_path / "out/parts").exists()


def test_odd_geometries_are_rejected_by_reason(tmp_path):
    def block(*atoms):
        head = f"\n     RDKit          3D\n\n{len(atoms):3d}  0  0  0  0  0  0  0  0  0999 V2000\n"
        rows = [f"{x:>10}{y:>10}{z:>10} Ar  0  0\n" for x, y, z in atoms]
        return f"{head}{''.join(rows)}M  END\n$$$$\n"

    apart = [(f"{x:.4f}", "0.0000", f"{x:.4f}") for x in range(500)]
    texts = [
        block(apart[1]), block(("nan", "0.0000", "1.0000")), block(*apart[:2]), block(*apart),
        block(("1.0000", "0.0000", "1.0000"), ("1.0010", "0.0000", "1.0000")),
    ]  # fmt: skip
    (tmp_path / "m.sdf").write_text("".join(texts))
    counts = convert([tmp_path / "m.sdf"], tmp_path / "out")
    assert counts["read"] == 5 and counts["converted"] == 2
    reasons = [json.loads(line)["reason"] for line in open(tmp_path / "out/rejects.jsonl")]
    assert reasons[0].startswith("cannot be parsed")
    assert reasons[1:] == ["more than 256 atoms: 500", "two atoms closer than 0.01 A"]


def test_compressed_sdf_keeps_coordinates_stereo_title_and_labels(tmp_path):
    mol = embed_conformer(Chem.MolFromSmiles("C[C@H](N)C(=O)O"), 1, keep_hydrogens=True)
    mol.SetProp("_Name", "alanine")
    block = Chem.MolToMolBlock(mol) + "> <gap>\n1.5\n\n$$$$\n"
    flat = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")) + "$$$$\n"
    with gzip.open(tmp_path / "m.sdf.gz", "wt") as file:
        file.write(block + flat + "nonsense\n$$$$\n" + block)
    counts = convert([tmp_path / "m.sdf.gz"], tmp_path / "out")
    assert counts == {"read": 4, "converted": 2, "rejected": 2, "outside_vocabulary": 0}
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.manifest["labels"] == [{"name": "gap", "unit": ""}]
    record = dataset.read_block(0).record(0)
    assert record.name == "alanine"
    assert record.y.tolist() == [1.5]
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
    reasons = (
        r"none of 1 molecules could be converted \(1 rejected: cannot be parsed\); the reasons"
    )
    with pytest.raises(MsdeError, match=reasons):
        convert([tmp_path / "bad.smi"], tmp_path / "out", "smiles")
    assert sorted(os.listdir(tmp_path / "out")) == ["notes.jsonl", "rejects.jsonl"]


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
        (["--conformers", "-1"], "must be at least 0"),
        (["--max-rejects", "2"], "a fraction"),
        (["--format", "smile"], "did you mean 'smiles'?"),
        (["TORN"], "cannot be read"),
        (["EMPTY"], "no molecules in"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line_and_write_nothing(tmp_path, arguments, message):
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


def test_the_format_is_recognised_and_printed(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n")
    (tmp_path / "m.sdf").write_text("\n")
    (tmp_path / "m.what").write_text("CCO\n")
    result = run(tmp_path / "m.smi", "--output", tmp_path / "out")
    assert result.stdout.splitlines()[0] == f"{tmp_path / 'm.smi'}: format smiles"
    result = run(tmp_path / "m.smi", tmp_path / "m.sdf", "--output", tmp_path / "mixed")
    assert result.returncode == 2 and "m.smi looks like smiles, " in result.stderr
    result = run(tmp_path / "m.what", "--output", tmp_path / "unknown")
    assert result.returncode == 2 and "looks like no known format" in result.stderr
    (tmp_path / "m.smi").write_text("")
    result = run(tmp_path / "m.smi", "--output", tmp_path / "empty")
    assert result.returncode == 2 and "it is empty" in result.stderr


def test_pickles_are_refused_unless_trusted(tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path / "m.lmdb"), subdir=False) as env, env.begin(write=True) as txn:
        txn.put(b"0", b"\x80\x04}\x94.")  # an empty dictionary, pickled
    for format in ("unimol", "fairchem"):
        result = run(tmp_path / "m.lmdb", "--format", format, "--output", tmp_path / "out")
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert "--trust-pickle" in result.stderr
        assert not (tmp_path / "out").exists()


def test_the_failure_of_one_molecule_does_not_affect_the_others(tmp_path):
    (tmp_path / "m.csv").write_text('id,smiles\n1\n2,"[H]O[H] |(0,0,0;0,0,1;0,1,1)|"\n')
    counts = convert([tmp_path / "m.csv"], tmp_path / "out", "cxsmiles")
    assert counts == {"read": 2, "converted": 1, "rejected": 1, "outside_vocabulary": 0}


def test_large_molecules_are_rejected_by_name(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\nCCCCCC\n")
    convert([tmp_path / "m.smi"], tmp_path / "out", "smiles", options=Options(max_atoms=5))
    rejects = (tmp_path / "out/rejects.jsonl").read_text()
    assert "more than 5 atoms: 6" in rejects


def test_no_conformers_are_made_of_molecules_that_are_too_large(tmp_path):
    (tmp_path / "m.smi").write_text(f"CCO\n{'C' * 900}\n")
    began = time.monotonic()
    counts = convert([tmp_path / "m.smi"], tmp_path / "out", "smiles")
    assert counts["rejected"] == 1 and time.monotonic() - began < 60  # it would take minutes


def test_elements_and_charges_outside_the_vocabulary_are_kept_and_noted(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n[Fe+6] ferrate\n")
    counts = convert([tmp_path / "m.smi"], tmp_path / "out", "smiles")
    assert counts == {"read": 2, "converted": 2, "rejected": 0, "outside_vocabulary": 1}
    (note,) = [json.loads(line) for line in open(tmp_path / "out/notes.jsonl")]
    assert note["line"] == 2 and note["name"] == "ferrate"
    assert note["reason"] == "not seen by the model: formal_charge of atom 0 (Z = 26)"


def test_zero_conformers_give_topology_alone(flat):
    dataset = ShardDataset(flat / "out")
    assert dataset.manifest["no_geometry"] == len(dataset) == dataset.manifest["molecules"]
    for columns in dataset.blocks():
        assert (columns.origin == Origin.NO_GEOMETRY).all() and not columns.pos.any()
