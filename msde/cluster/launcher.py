"""The launcher above a rank, which the rank must not outlive.

When DeepSpeed's launcher is killed its ranks go on as orphans, and when its runner is killed, so do
the launcher and the ranks. So each rank notes at its very start which processes started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from msde.errors import MsdeError

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded now, because little is safe between fork and exec
_LAUNCHERS = {
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torchrun",
    "torch.distributed.run",
}
SUPERVISED = "MSDE_SUPERVISED_BY"  # set by `supervise`: its process, and the time of the start
_LAUNCHED = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")  # set by deepspeed's launcher and torchrun


def end_with_the_parent(number: int) -> None:
    """Ask the system to send this process a signal when its parent ends."""
    with contextlib.suppress(AttributeError):  # only Linux has it
        _libc.prctl(_PR_SET_PDEATHSIG, number)


class LauncherGone(MsdeError):
    """The launcher was killed while the rank was starting."""

    exit_code = 4
    report_immediately = True


class Launcher:
    """The ancestors of this process up to the topmost launcher.

    A process that was started from a shell has no launcher: it may outlive the shell.
    """

    def __init__(self) -> None:
        """Look up the ancestors, and ask for SIGTERM when the parent ends.

        Raises:
            LauncherGone: there was a launcher, which has ended already.
        """
        chain = [os.getpid()]
        while parent := _parent_of(chain[-1]):
            chain.append(parent)
        supervisor = os.environ.get(SUPERVISED, "").partition("-")[0]
        launchers = [
            place
            for place, process in enumerate(chain)
            if str(process) == supervisor or _is_launcher(process)
        ]
        launched = [name for name in _LAUNCHED if name in os.environ]
        if launched and not launchers:
            raise LauncherGone(
                f"{launched[0]} is set, but the launcher that set it is gone: start again (if it "
                f"is invisible, in another PID namespace, unset {launched[0]})"
            )
        self._chain = chain[: max(launchers, default=0) + 1]
        if launchers:
            end_with_the_parent(signal.SIGTERM)

    @property
    def gone(self) -> bool:
        """Whether one of the ancestors has ended."""
        return any(
            _parent_of(process) != parent for process, parent in itertools.pairwise(self._chain)
        )


def _is_launcher(process: int) -> bool:
    try:
        return runs_launcher(Path(f"/proc/{process}/cmdline").read_text().split("\0"))
    except OSError:
        return False


def runs_launcher(words: Sequence[str]) -> bool:
    """Return whether a command line runs one of the launchers, as a program or by Python."""
    program = Path(words[0]).name
    if program.startswith("python"):  # -u -m name, or -X dev script
        names = (
            Path(word).name
            for before, word in itertools.pairwise(words)
            if not word.startswith("-") and before not in ("-X", "-W")
        )
        program = next(names, "")
    return program in _LAUNCHERS


def _parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None
