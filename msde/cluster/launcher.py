"""Not outliving the launcher.

DeepSpeed's launcher leaves its ranks behind when it is killed; its runner, when it is killed,
leaves the launcher and the ranks. So each rank remembers, first of all, which processes started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from msde.errors import MsdeError

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded now: between fork and exec as little as possible should happen
_LAUNCHERS = {
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torchrun",
    "torch.distributed.run",
    "launch.supervise",
    "msde.launch.supervise",
}
_TRACES = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")  # set by deepspeed's launcher, torchrun


def end_with_the_parent(number: int) -> None:
    """Have the system send this process a signal when its parent ends."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        _libc.prctl(_PR_SET_PDEATHSIG, number)


class LauncherGone(MsdeError):
    """A rank whose launcher was killed before the rank had begun."""

    exit_code = 4
    report_immediately = True


class Launcher:
    """The processes above this one that started it, up to the topmost launcher.

    A process that was started from a shell has none: it may outlive the shell.
    """

    def __init__(self) -> None:
        """Look at the parents, and have the system send SIGTERM when the nearest one ends.

        Raises:
            LauncherGone: there was a launcher, and it ended before this process could look.
        """
        above = [os.getpid()]
        while parent := _parent_of(above[-1]):
            above.append(parent)
        launchers = [place for place, process in enumerate(above) if _is_launcher(process)]
        traces = [name for name in _TRACES if name in os.environ]
        if traces and not launchers:
            raise LauncherGone(
                f"{traces[0]} is set, but the launcher that set it is gone: start again (where it "
                f"runs out of sight, in another PID namespace, unset {traces[0]})"
            )
        self._chain = above[: max(launchers, default=0) + 1]
        if launchers:
            end_with_the_parent(signal.SIGTERM)

    @property
    def gone(self) -> bool:
        """Whether one of them has ended."""
        return any(
            _parent_of(process) != above
            for process, above in zip(self._chain, self._chain[1:], strict=False)
        )


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return any(Path(word).name in _LAUNCHERS for word in words[:4])  # python -u -m name


def _parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None
