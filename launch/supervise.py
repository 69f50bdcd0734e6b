"""Start a run again until it is done.

python -m launch.supervise [--restarts N] --output DIR -- deepspeed launch/pretrain.py ...
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster import preemption
from msde.cluster.launcher import end_with_the_parent
from msde.errors import MsdeError

PREEMPTED = 75  # EX_TEMPFAIL: the same command goes on later
NOT_RETRYABLE = {
    2: "input or configuration",
    3: "no valid checkpoint",
    5: "losses that are not finite",
    6: "damaged data",
}
GRACE = 40.0  # seconds to end after SIGTERM: the launchers give their ranks 30
MARK = "MSDE_SUPERVISED_BY"  # in the environment of all processes of a job


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows -- is the command to run."""
    usage = "python -m launch.supervise [--restarts N] --output DIR -- command ..."
    parser = OneLineParser(usage=usage, description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="at most so many")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before each")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.command = parsed.command[parsed.command[:1] == ["--"] :]
    if not parsed.command:
        raise MsdeError(f"the command is missing: {usage}")
    return parsed


class Job:
    """One start of the command, with all processes that come of it."""

    def __init__(self, command: list[str]) -> None:
        """Start it; it ends when this process does."""
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            command,
            env=os.environ | {MARK: self.mark},
            preexec_fn=lambda: end_with_the_parent(signal.SIGTERM),
        )

    def members(self) -> list[int]:
        """Return the processes of the job that are alive, orphans included."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                alive = " Z " not in (folder / "stat").read_text().rpartition(")")[2][:3]
                if alive and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def signal(self, number: int) -> None:
        """Send a signal to every process of the job."""
        for process in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def clean_up(self) -> None:
        """End what is left of it, the hard way where it has to be."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.members() and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        self.signal(signal.SIGKILL)
        self.process.wait()


class Supervisor:
    """Starts a command until it leaves DONE behind, and passes on that it is to stop."""

    def __init__(self, output: Path) -> None:
        """Listen for what batch systems send before they kill."""
        self.output, self.stopping = output, False
        self.job: Job | None = None
        for number in (*preemption.SIGNALS, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: object) -> None:
        self.stopping = True
        if self.job is not None:
            # To the ranks as well: launchers know SIGTERM only, and some not even that.
            self.job.signal(signal.SIGTERM)

    def run(self, command: list[str]) -> int:
        """Run the command once; return 0 if it is done, else what to exit with."""
        preemption.clear_marks(self.output)
        self.job = Job(command)
        code = self.job.process.wait()
        done, preempted = self.output / preemption.DONE, self.output / preemption.PREEMPTED
        self.job.clean_up()
        if done.exists():
            return 0
        # Ranks save and stop when a launcher is killed, too; nobody has asked them to.
        told = preempted.read_text() if preempted.exists() else ""
        if preempted.exists() and (self.stopping or preemption.LAUNCHER_GONE not in told):
            return PREEMPTED
        if not 0 < code < 128:  # a success that is none, or a signal
            return 1
        return code


def main() -> None:
    """Run, and run again."""
    arguments = parse(sys.argv[1:])
    supervisor = Supervisor(arguments.output)
    for left in range(arguments.restarts, -1, -1):
        code = supervisor.run(arguments.command)
        told = f"supervise: exit code {code}"
        if code in (0, PREEMPTED) or supervisor.stopping or not left:
            break
        if code in NOT_RETRYABLE:
            sys.stderr.write(f"{told}: {NOT_RETRYABLE[code]}; starting again would not help\n")
            break
        sys.stderr.write(f"{told}: starting again, {left} more at most\n")
        time.sleep(arguments.pause)
    sys.exit(code)


if __name__ == "__main__":
    report_errors(main)
