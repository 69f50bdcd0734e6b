"""Conversions that are killed, stopped or started twice, and disks that fill up."""

import math
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fixtures.conversions import hashes, run, start
from msde import files
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.pipeline import parts
from msde.data_tools.pipeline.executors import open_workers
from msde.data_tools.readers import Options
from msde.errors import DiskFull, MsdeError


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
    assert second.returncode == 7 and "another process is converting" in stderr


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
