"""Everything that is wrong with a command is told at once, and soon."""

import json
import subprocess
import sys

import pytest

from fixtures.jobs import Job, finish
from msde.errors import ErrorList, MsdeError


@pytest.mark.launcher
def test_a_dry_run_lists_all_problems_at_once(tmp_path):
    path = tmp_path / "bad.json"
    values = {"gradient_cliping": 1.0, "bf16": {"enabled": True}, "train_batch_size": 3}
    path.write_text(json.dumps(values | {"zero_optimization": {"stage": 7}}))
    arguments = ["--data", tmp_path / "nowhere", "--output", tmp_path / "run", "--dry-run"]
    arguments += ["--deepspeed_config", path, "model.hiden_dim=3", "run.log_every=0"]
    arguments += ["optim.lr=fast", "data.workers=-1"]
    job = Job(tmp_path, *arguments, ranks=2)
    assert job.wait() == [2, 2]
    told = job.log()
    for part in [
        "9 problems",
        "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?",
        "bf16.enabled cannot be used: it casts BatchNorm's parameters",
        "3 slots, which 2 ranks cannot share evenly",
        "zero_optimization.stage is 7",
        "unknown key 'model.hiden_dim'; did you mean 'model.hidden_dim'?",
        "optim.lr is 'fast', expected float",
        "run.log_every must be positive",
        "data.workers must not be negative",
        "nowhere does not exist",
    ]:
        assert part in told, part
    assert "Traceback" not in told and told.count("error") == 1
    assert not (tmp_path / "run").exists()


def test_one_problem_is_one_line():
    errors = ErrorList()
    errors.raise_if_any()
    with errors.collect():
        raise MsdeError("the only one")
    with pytest.raises(MsdeError, match="^the only one$"):
        errors.raise_if_any()
    with errors.collect():
        inner = ErrorList()
        inner.add("another")
        inner.add("a third")
        inner.raise_if_any()
    with pytest.raises(MsdeError, match="3 problems:\n  the only one\n  another\n  a third"):
        errors.raise_if_any()


@pytest.mark.dist
@pytest.mark.slow
def test_a_profile_is_a_trace_of_every_rank(shard_dir, tmp_path):
    import gzip

    arguments = ["--data", shard_dir, "--output", tmp_path / "run", "--preset=paper"]
    arguments += ["model.hidden_dim=16", "data.validation_fraction=0", "run.steps=5"]
    told = finish(tmp_path, *arguments, "data.molecules_per_step=24", "--profile", 2)
    assert "trace of 2 steps" in told
    for rank in (0, 1):
        with gzip.open(tmp_path / f"run/profile/rank-{rank}.json.gz") as file:
            names = [event.get("name") for event in json.load(file)["traceEvents"]]
        assert sum(str(name).startswith("ProfilerStep") for name in names) >= 2
        assert any("all_reduce" in str(name) or "allreduce" in str(name) for name in names)


@pytest.mark.parametrize("failing", [False, True])
def test_a_rank_ends_with_its_exit_code_whatever_its_threads_do(failing):
    """Threads of collectives that are late hold a process up, or abort it while Python ends."""
    script = """
import os, sys, threading, time
from msde.cli import report_errors
from msde.errors import NoCheckpoint

def main():
    os.environ["RANK"] = "0"
    threading.Thread(target=time.sleep, args=[100]).start()
    print("was here", end="")
    if sys.argv[1] == "True":
        raise NoCheckpoint("there is none")

report_errors(main)
"""
    command = [sys.executable, "-c", script, str(failing)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == (3 if failing else 0) and done.stdout == "was here"
    assert done.stderr == ("error: there is none\n" if failing else "")
