"""What launch/supervise.py makes of the ends of a job."""

import json
import signal
import subprocess
import sys
import time

import pytest

from fixtures.jobs import (
    SLOW,
    finish,
    has_rows,
    launcher_of,
    members,
    ranks_of,
    read_rows,
    send,
    wait_for,
)
from fixtures.launching import ENVIRONMENT, deepspeed
from fixtures.paths import LAUNCH, PRETRAIN, ROOT
from msde.cluster.supervisor import supervise as run_alone
from msde.errors import MsdeError

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


def supervise(output, *command, restarts=0, pause=0):
    start = [sys.executable, "-m", "launch.supervise", "--restarts", restarts, "--pause", pause]
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
def test_supervise_restarts_only_after_failures_that_may_go_away(tmp_path, body, code, starts):
    count = "open(output + '/count', 'a').write('x')\n"
    (tmp_path / "DONE").write_text("of an earlier run")
    job = supervise(tmp_path, *scripted(tmp_path, count + body), restarts=2)
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == code, errors
    assert (tmp_path / "count").read_text() == "x" * starts
    assert ("would not help" in errors) == (code in (2, 3, 5, 6))
    ends_well = body == "pass" or body.startswith("os.path")  # at its first start
    assert (f"the command ended, but there is no {tmp_path / 'DONE'}" in errors) == ends_well


def test_supervise_ends_every_process_of_a_job_and_forwards_signals(tmp_path):
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


def test_supervise_ends_processes_that_begin_while_it_ends_the_others(tmp_path):
    """Before the grace period of 40 s is over, after which it would kill them."""
    late = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', output])"
    leaves = f"""import signal, subprocess
def start_another(*arguments):
    {late}
    os._exit(0)
signal.signal(signal.SIGTERM, start_another)
if os.fork():
    time.sleep(1)
    os.kill(os.getpid(), 9)
time.sleep(99)"""
    job = supervise(tmp_path, *scripted(tmp_path, leaves))
    assert job.wait(30) == 1 and not members(tmp_path)


@pytest.mark.parametrize("start", [["-m", "msde", "supervise"], [LAUNCH / "supervise.py"]])
def test_a_rank_knows_the_supervisor_above_it_however_that_was_started(tmp_path, start):
    """With a shell in between, too."""
    body = """from msde.cluster.launcher import Launcher
supervisor = int(os.environ["MSDE_SUPERVISED_BY"].partition("-")[0])
if Launcher()._chain[-1] == supervisor:
    open(output + "/DONE", "w")"""
    shell = ["bash", "-c", '"$@"; true', "bash", *scripted(tmp_path, body)]
    command = [sys.executable, *start, "--output", tmp_path, "--", *shell]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_request_to_stop_in_the_pause_before_a_restart_is_kept(tmp_path):
    count = "open(output + '/count', 'a').write('x'); sys.exit(4)"
    job = supervise(tmp_path, *scripted(tmp_path, count), restarts=1, pause=3)
    wait_for((tmp_path / "count").exists)
    time.sleep(0.7)  # the job has been cleaned up by then
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 4 and (tmp_path / "count").read_text() == "x"


def test_a_command_that_cannot_be_run_and_wrong_numbers_are_one_line(tmp_path):
    for command, options, message in (
        (["no-such-command"], {}, "no-such-command is no command that can be run"),
        ([sys.executable], {"restarts": -1}, "--restarts must be at least 0"),
    ):
        with pytest.raises(MsdeError, match=message):
            run_alone(tmp_path, command, **options)
    (tmp_path / "file").touch()
    with pytest.raises(MsdeError, match="is a file, expected the folder of the run"):
        run_alone(tmp_path / "file", [sys.executable])


def test_supervise_needs_a_command(tmp_path):
    job = supervise(tmp_path)
    assert "the command is missing" in job.communicate(timeout=30)[1] and job.returncode == 2


@pytest.mark.slow
def test_a_supervised_run_with_killed_processes_equals_an_undisturbed_one(common, tmp_path):
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
        wait_for(has_rows(output, 4))
        send(launcher_of(output), signal.SIGKILL)
        wait_for(has_rows(output, 8))
        send(ranks_of(output)[1], signal.SIGKILL)
        assert job.wait(200) == 0
    finally:
        job.kill()
        for process in members(output):
            process.kill()
    assert read_rows(output) == read_rows(tmp_path / "whole")
