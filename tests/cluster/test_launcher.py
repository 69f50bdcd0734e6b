"""Launchers that are killed, and torchrun."""

import signal
import time

import pytest

from fixtures.jobs import (
    SLOW,
    Job,
    finish,
    has_rows,
    launcher_of,
    members,
    ranks_of,
    runner_of,
    saved_steps,
    send,
    steps,
    wait_for,
)
from fixtures.launching import BINARIES, deepspeed, free_port

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [runner_of, launcher_of])
def test_nothing_outlives_a_killed_launcher(common, tmp_path, victim):
    output = tmp_path / "run"
    job = Job(tmp_path, *common, "run.steps=1000", harm=SLOW, launcher=deepspeed())
    try:
        wait_for(has_rows(output))
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
    # The script as it is: one that injects faults imports torch before it looks for its launcher.
    job = Job(tmp_path, *common, "run.steps=1000", launcher=deepspeed())
    try:
        wait_for(lambda: len(ranks_of(output)) == 2)
        time.sleep(0.5)
        send(launcher_of(output), signal.SIGKILL)
        wait_for(lambda: not ranks_of(output), timeout=10)
    finally:
        for process in members(output):
            process.kill()
        job.kill()


@pytest.mark.slow
def test_torchrun_starts_the_ranks(common, tmp_path):
    launcher = [BINARIES / "torchrun", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    launcher += [f"--master-port={free_port()}"]
    finish(tmp_path, *common, "run.steps=2", launcher=launcher)
    assert steps(tmp_path / "run") == [1, 2]
