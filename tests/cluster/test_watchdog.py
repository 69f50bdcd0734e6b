"""Ranks that hang."""

import signal
import subprocess
import sys
import time

import pytest

from fixtures.jobs import (
    Job,
    has_rows,
    wait_for,
)

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_hanging_rank_is_detected_and_named(common, tmp_path, hung):
    harm = {"what": "hang", "rank": hung, "step": 4}
    job = Job(tmp_path, *common, "run.steps=100", "run.comm_timeout=10", harm=harm)
    try:
        wait_for(has_rows(tmp_path / "run", 3))
        since = time.monotonic()
        code = job.processes[1 - hung].wait(60)
        took = time.monotonic() - since
    finally:
        job.kill()
    printed = job.log(1 - hung)
    assert code == 4 and took < 15, (code, took, printed[-2000:])
    assert f"silent: rank {hung}" in printed, printed[-2000:]
    assert "all 2 ranks" in printed or "no progress" in printed, printed[-2000:]


PAUSED = """
from pathlib import Path
from msde.cluster.launcher import Launcher
from msde.cluster.preemption import StopRequest
from msde.cluster.watchdog import Watchdog

watchdog = Watchdog(4.0, StopRequest(Path(".")), Launcher())
watchdog.progress()
print("waiting", flush=True)
input()
"""


def test_a_process_that_was_paused_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    time.sleep(2)
    _, printed = process.communicate("\n", timeout=30)
    assert process.returncode == 0, printed
