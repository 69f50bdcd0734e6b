"""Ranks that hang, launchers that are killed, and what supervises them."""

import json
import signal
import subprocess
import sys
import time

import pytest

from fixtures.jobs import (
    TINY,
    Job,
    deepspeed,
    finish,
    members,
    ranks_of,
    read_rows,
    saved_steps,
    send,
    steps,
    wait_for,
)
from fixtures.launching import BINARIES, ENVIRONMENT, ds_config, free_port
from fixtures.paths import PRETRAIN, ROOT

pytestmark = [pytest.mark.launcher, pytest.mark.dist]

SLOW = {"what": "slow", "step": 0, "seconds": 0.25}


@pytest.fixture
def common(shard_dir, tmp_path):
    path = ds_config(tmp_path, 1, slots=2)
    return ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", tmp_path / "run"]


def training(output, steps_made=2):
    path = output / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") >= steps_made


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_hangs_is_noticed_and_named(common, tmp_path, hung):
    harm = {"what": "hang", "rank": hung, "step": 4}
    job = Job(tmp_path, *common, "run.steps=100", "run.comm_timeout=10", harm=harm)
    try:
        wait_for(training(tmp_path / "run", 3))
        since = time.monotonic()
        code = job.processes[1 - hung].wait(60)
        took = time.monotonic() - since
    finally:
        job.kill()
    told = job.log(1 - hung)
    assert code == 4 and took < 15, (code, took, told[-2000:])
    assert f"silent: rank {hung}" in told and "all 2 ranks" in told or "no progress" in told


def launcher_of(output):
    (launcher,) = [p for p in members(output) if "deepspeed.launcher.launch" in p.cmdline()]
    return launcher


def runner_of(output):
    (runner,) = [p for p in members(output) if "--num_accelerators=2" in p.cmdline()]
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("victim", [runner_of, launcher_of])
def test_nothing_outlives_a_killed_launcher(common, tmp_path, victim):
    output = tmp_path / "run"
    job = Job(tmp_path, *common, "run.steps=1000", harm=SLOW, launcher=deepspeed())
    try:
        wait_for(training(output))
        send(victim(output), signal.SIGKILL)
        wait_for(lambda: not members(output), timeout=10)
    finally:
        for process in members(output):
            process.kill()
        job.kill()
    assert not (output / "DONE").exists()
    # What had been done was saved, since the ranks were well.
    assert saved_steps(output) == [steps(output)[-1]]


@pytest.mark.slow
def test_nothing_outlives_a_launcher_killed_while_the_ranks_start(common, tmp_path):
    output = tmp_path / "run"
    job = Job(tmp_path, *common, "run.steps=1000", harm=SLOW, launcher=deepspeed())
    try:
        wait_for(lambda: len(ranks_of(output)) == 2)
        time.sleep(0.5)
        send(launcher_of(output), signal.SIGKILL)
        wait_for(lambda: not ranks_of(output), timeout=10)
    finally:
        for process in members(output):
            process.kill()
        job.kill()


def supervise(output, *command, restarts=0):
    start = [sys.executable, "-m", "launch.supervise", "--restarts", restarts, "--pause", 0]
    start += ["--output", output, "--", *command]
    return subprocess.Popen(
        list(map(str, start)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def scripted(tmp_path, body):
    """A command that stands for a job."""
    path = tmp_path / "job.py"
    path.write_text(f"import os, sys, time\noutput = {str(tmp_path)!r}\n{body}")
    return [sys.executable, path]


@pytest.mark.parametrize(
    ("body", "code", "starts"),
    [
        ("open(output + '/DONE', 'w')", 0, 1),
        ("pass", 1, 3),  # a success that is none
        ("open(output + '/PREEMPTED', 'w'); sys.exit(1)", 75, 1),
        ("sys.exit(4)", 4, 3),
        ("sys.exit(2)", 2, 1),
        ("sys.exit(3)", 3, 1),
        ("sys.exit(5)", 5, 1),
        ("sys.exit(6)", 6, 1),
        ("os.kill(os.getpid(), 9)", 1, 3),
        ("os.path.getsize(output + '/count') > 1 and open(output + '/DONE', 'w')", 0, 2),
    ],
)
def test_what_supervise_makes_of_the_ends_of_a_job(tmp_path, body, code, starts):
    count = "open(output + '/count', 'a').write('x')\n"
    (tmp_path / "DONE").write_text("of an earlier run")
    job = supervise(tmp_path, *scripted(tmp_path, count + body), restarts=2)
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == code, errors
    assert (tmp_path / "count").read_text() == "x" * starts
    assert ("would not help" in errors) == (code in (2, 3, 5, 6))


def test_supervise_leaves_nothing_behind_and_passes_on_signals(tmp_path):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', output])"
    leaves = f"import subprocess\n{child}\nos.kill(os.getpid(), 9)"
    job = supervise(tmp_path, *scripted(tmp_path, leaves))
    assert job.wait(30) == 1 and not members(tmp_path)
    waits = """import signal
def stop(*arguments):
    open(output + '/PREEMPTED', 'w')
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open(output + '/ready', 'w')
time.sleep(99)"""
    job = supervise(tmp_path, *scripted(tmp_path, waits), restarts=3)
    wait_for((tmp_path / "ready").exists)
    job.send_signal(signal.SIGUSR2)
    assert job.wait(30) == 75


def test_supervise_refuses_to_run_nothing(tmp_path):
    job = supervise(tmp_path)
    assert "the command is missing" in job.communicate(timeout=30)[1] and job.returncode == 2


@pytest.mark.slow
def test_a_supervised_run_survives_what_is_done_to_it(common, tmp_path):
    """Its launcher and its ranks are killed; it ends as the undisturbed run does."""
    output = tmp_path / "run"
    whole = [tmp_path / "whole" if item == output else item for item in common]
    finish(tmp_path, *whole, "run.steps=12")
    script = str(PRETRAIN).replace("launch/pretrain.py", "tests/harm/pretrain.py")
    command = [*deepspeed(), script, *common, "run.steps=12", "run.save_every=3"]
    environment = json.dumps(SLOW)
    start = [sys.executable, "-m", "launch.supervise", "--restarts", 3, "--pause", 0]
    start += ["--output", output, "--", *command]
    job = subprocess.Popen(list(map(str, start)), cwd=ROOT, env=ENVIRONMENT | {"HARM": environment})
    try:
        wait_for(training(output, 4))
        send(launcher_of(output), signal.SIGKILL)
        wait_for(training(output, 8))
        send(ranks_of(output)[1], signal.SIGKILL)
        assert job.wait(200) == 0
    finally:
        job.kill()
        for process in members(output):
            process.kill()
    assert read_rows(output) == read_rows(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_starts_the_ranks(common, tmp_path):
    launcher = [BINARIES / "torchrun", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    launcher += [f"--master-port={free_port()}"]
    finish(tmp_path, *common, "run.steps=2", launcher=launcher)
    assert steps(tmp_path / "run") == [1, 2]
