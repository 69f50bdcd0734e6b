"""Supervising a command: it is started again until its run is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from msde.cluster import preemption
from msde.cluster.launcher import SUPERVISED, end_with_the_parent
from msde.errors import MsdeError, require

PREEMPTED = 75  # EX_TEMPFAIL: the same command goes on later
NOT_RETRYABLE = {
    2: "input or configuration",
    3: "no valid checkpoint",
    5: "losses that are not finite",
    6: "damaged data",
}
GRACE = 40.0  # seconds to end after SIGTERM: the launchers give their ranks 30


class Job:
    """One start of the command, with all processes that descend from it."""

    def __init__(self, command: list[str]) -> None:
        """Start the command; it gets SIGTERM when this process ends."""
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            command,
            env=os.environ | {SUPERVISED: self.mark},
            preexec_fn=lambda: end_with_the_parent(signal.SIGTERM),
        )

    def members(self) -> list[int]:
        """Return the ids of the job's processes that are alive, orphans included."""
        found = []
        wanted = f"{SUPERVISED}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                alive = " Z " not in (folder / "stat").read_text().rpartition(")")[2][:3]
                if alive and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def signal(self, number: int, spared: Collection[int] = ()) -> list[int]:
        """Send a signal to every process of the job but those spared; return those alive."""
        alive = self.members()
        for process in set(alive) - set(spared):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        return alive

    def clean_up(self) -> None:
        """End the processes that are left: SIGTERM first, once each, SIGKILL after a grace period.

        Two looks in turn must find none: a process that is just being started has no environment.
        """
        told: set[int] = set()
        looks, deadline = 0, time.monotonic() + GRACE
        while looks < 2 and time.monotonic() < deadline:
            alive = self.signal(signal.SIGTERM, told)
            told.update(alive)
            looks = 0 if alive else looks + 1
            self.process.poll()
            time.sleep(0.1)
        self.signal(signal.SIGKILL)
        self.process.wait()


class Supervisor:
    """Runs a command in a job, forwards stop signals to it, and judges how it ended."""

    def __init__(self, output: Path) -> None:
        """Handle the signals that batch systems send before they kill."""
        self.output, self.stopping = output, False
        self.job: Job | None = None
        for number in (*preemption.SIGNALS, signal.SIGINT):
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: object) -> None:
        self.stopping = True
        if self.job is not None:
            # To the ranks as well: launchers know SIGTERM only, and some not even that.
            self.job.signal(signal.SIGTERM)

    def run(self, command: list[str]) -> int:
        """Run the command once; return 0 if the run is done, else the exit code that says why."""
        preemption.clear_marks(self.output)
        self.job = Job(command)
        if self.stopping:  # asked to between the last look and this start
            self.job.signal(signal.SIGTERM)
        code = self.job.process.wait()
        done, preempted = self.output / preemption.DONE, self.output / preemption.PREEMPTED
        self.job.clean_up()
        if done.exists():
            return 0
        # Ranks also save and stop when their launcher is killed, which is not a request to stop.
        reason = preempted.read_text(errors="replace") if preempted.exists() else ""
        if preempted.exists() and (self.stopping or preemption.LAUNCHER_GONE not in reason):
            return PREEMPTED
        if code == 0:  # some launchers lose the exit codes of their ranks
            sys.stderr.write(f"supervise: the command ended, but there is no {done}\n")
        return code if 0 < code < 128 else 1  # else 0, or a signal


def supervise(output: Path, command: list[str], restarts: int = 0, pause: float = 5.0) -> int:
    """Run a command, and again after failures that a restart may cure; return the exit code.

    Args:
        output: folder of the run, where the marker DONE says that it is done.
        restarts: how often the command is started again at most.
        pause: seconds before each restart.

    Raises:
        MsdeError: there is no such command, or a number is below zero.
    """
    require(
        {"--restarts must be at least 0": restarts >= 0, "--pause must be at least 0": pause >= 0}
    )
    if output.exists() and not output.is_dir():
        raise MsdeError(f"--output {output} is a file, expected the folder of the run")
    if shutil.which(command[0]) is None:
        raise MsdeError(f"{command[0]} is no command that can be run; give it behind --")
    supervisor = Supervisor(output)
    for left in range(restarts, -1, -1):
        code = supervisor.run(command)
        if code in (0, PREEMPTED) or supervisor.stopping or not left:
            break
        if code in NOT_RETRYABLE:
            reason = f"{NOT_RETRYABLE[code]}; starting again would not help"
            sys.stderr.write(f"supervise: exit code {code}: {reason}\n")
            break
        sys.stderr.write(f"supervise: exit code {code}: starting again, {left} more at most\n")
        time.sleep(pause)
        if supervisor.stopping:
            break
    return code
