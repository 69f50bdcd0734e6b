import gzip
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from fixtures.commands import run_here
from fixtures.molecules import NCI
from msde import files
from msde.chem.conformers import embed_conformer
from msde.chem.record import Origin
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.pipeline import parts
from msde.data_tools.pipeline.executors import open_workers
from msde.data_tools.readers import Options
from msde.errors import DiskFull, MsdeError
from msde.files import file_sha256

# Shards of two chunks, so that a conversion has many parts.
SMALL_SHARDS = """
from msde import files
from msde.data_tools.pipeline import parts
from msde.data_tools.convert import main
from msde.cli import report_errors
files.LOCK_SECONDS = 1
parts.SHARD_MOLECULES = 128
if __name__ == "__main__":
    report_errors(main)
"""


def run(*arguments):
    return run_here("msde.data_tools.convert", *arguments)


def start(*arguments):
    command = [sys.executable, "-c", SMALL_SHARDS, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells let what they start in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def hashes(folder):
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def finished_parts(out):
    return len(list(out.glob("parts/shard-*.json")))


def workers_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def seconds_used(pid):
    """Return the processor time of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(parts, "SHARD_MOLECULES", 128)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """SMILES that are converted without geometry in a second, and their data set."""
    folder = tmp_path_factory.mktemp("flat")
    lines = NCI.read_text().splitlines()[:1500]
    lines[7::50] = ["C(C broken"] * len(lines[7::50])
    (folder / "flat.smi").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHARD_MOLECULES", 128)
        convert([folder / "flat.smi"], folder / "out", "smiles", options=Options(conformers=0))
    return folder


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


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_conversions_resume_and_end_the_same(flat, tmp_path, processes):
    rng = random.Random(processes)
    out = tmp_path / "out"
    arguments = [flat / "flat.smi", "--output", out, "--conformers", 0, "--processes", processes]
    kills = 0
    for last in (False, False, False, True):
        # The last kill is among the lists, the manifest and the removal of the parts.
        goal = math.inf if last else finished_parts(out) + 1
        process = start(*arguments)
        wait_until(
            lambda goal=goal: finished_parts(out) >= goal or (out / "rejects.jsonl").exists()
        )
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        _, stderr = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert "error" not in stderr
    visible = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    if "manifest.json" not in visible or "parts" in visible:
        assert start(*arguments).wait() == 0
    assert kills >= 3
    assert hashes(out) == hashes(flat / "out")


def test_damaged_parts_are_converted_again(flat, tmp_path, small_shards, monkeypatch):
    source, out, options = flat / "flat.smi", tmp_path / "out", Options(conformers=0)

    def stop(*arguments):
        raise MsdeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("msde.data_tools.pipeline.conversion.write_manifest", stop)
        with pytest.raises(MsdeError, match="stopped"):
            convert([source], out, "smiles", options=options)
    (out / "shard-00003.lmdb").chmod(0o644)
    with open(out / "shard-00003.lmdb", "r+b") as file:
        file.seek(5000)
        file.write(b"?")
    (out / "parts/shard-00005.rejects.jsonl").unlink()
    (out / "parts/shard-00007.json").unlink()
    before = {p.name: p.stat().st_ino for p in out.glob("*.lmdb")}
    convert([source], out, "smiles", options=options)
    after = {p.name: p.stat().st_ino for p in out.glob("*.lmdb")}
    redone = {name for name in before if before[name] != after[name]}
    assert redone == {"shard-00003.lmdb", "shard-00005.lmdb", "shard-00007.lmdb"}
    assert hashes(out) == hashes(flat / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_a_conversion_with_one_line(flat, tmp_path, number):
    arguments = [flat / "flat.smi", "--output", tmp_path / "out", "--processes", 2, "--limit", 300]
    process = start(*arguments)
    wait_until(lambda: len(workers_of(process)) == 2)
    wait_until(lambda: all(seconds_used(worker) > 0.1 for worker in workers_of(process)))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr == "error: stopped; run the same command again to resume\n"


def test_the_death_of_a_worker_is_an_error_of_one_line(flat, tmp_path):
    arguments = [flat / "flat.smi", "--output", tmp_path / "out", "--processes", 2, "--limit", 300]
    process = start(*arguments)
    wait_until(lambda: len(workers_of(process)) == 2)
    os.kill(int(workers_of(process)[0]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    # Python's own remarks on a process that is stopped while it starts may come before.
    (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: a worker process died, perhaps for lack of memory, near line")
    assert stderr.endswith(f"{line}\n")


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


def test_the_unfinished_folder_of_another_job_is_refused(flat, tmp_path):
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts/job.json").write_text('{"format": "sdf"}')
    result = run(flat / "flat.smi", "--output", out, "--conformers", 0)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "the unfinished conversion of something else" in result.stderr
    assert "format is 'sdf' there, 'smiles' here" in result.stderr


def test_a_running_conversion_locks_its_folder(flat, tmp_path):
    options = ["--output", tmp_path / "out", "--processes", 1, "--limit", 1500]
    first = start(flat / "flat.smi", *options)
    wait_until((tmp_path / "out/parts/job.json").exists)
    second = start(flat / "flat.smi", *options)
    _, stderr = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and "another process is converting" in stderr


def test_of_two_conversions_that_begin_at_once_one_goes_on(flat, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0)

    def begin():
        convert([flat / "flat.smi"], tmp_path / "out", options=Options(conformers=0), limit=100)

    def write_while_another_begins(path, write, durable=True):
        def write_and_begin(temporary):
            write(temporary)
            monkeypatch.setattr(parts, "write_atomically", files.write_atomically)
            with pytest.raises(MsdeError, match="another process is converting to"):
                begin()

        files.write_atomically(path, write_and_begin, durable)

    monkeypatch.setattr(parts, "write_atomically", write_while_another_begins)
    begin()
    assert len(ShardDataset(tmp_path / "out")) == 98


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
    with pytest.raises(MsdeError, match="none of 1 molecules"):
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


def test_a_full_disk_is_an_error_and_the_conversion_resumes(flat, tmp_path, small_shards):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that are not there")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"\0" * (7 << 20))
        arguments = [flat / "flat.smi", "--output", disk / "out", "--conformers", 0]
        process = start(*arguments)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == DiskFull.exit_code, stderr
        assert stderr.startswith("error: disk full") and stderr.count("\n") == 1
        assert f"{disk / 'out'}" in stderr and " bytes" in stderr
        finished = sorted(p.name for p in (disk / "out/parts").glob("shard-*.json"))
        assert finished
        kept = {p: (disk / "out" / p).with_suffix(".lmdb").stem for p in finished}
        inodes = {name: (disk / f"out/{name}.lmdb").stat().st_ino for name in kept.values()}
        filler.unlink()
        assert start(*arguments).wait() == 0
        assert {n: (disk / f"out/{n}.lmdb").stat().st_ino for n in inodes} == inodes
        assert hashes(disk / "out") == hashes(flat / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_workers_killed_while_they_send_do_not_block_the_main_process():
    threads = set(threading.enumerate())
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt), open_workers("local", 2) as workers:
            futures = [workers.executor.submit(bytes, 1 << 24) for _ in range(8)]
            futures[0].result()
            raise KeyboardInterrupt
        assert set(threading.enumerate()) == threads
