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

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded now: between fork and exec as little as possible should happen
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed.run", "launch.supervise")


def end_with_the_parent(number: int) -> None:
    """Have the system send this process a signal when its parent ends."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        _libc.prctl(_PR_SET_PDEATHSIG, number)


class Launcher:
    """The processes above this one that started it, as far as they are launchers.

    A process that was started from a shell has none: it may outlive the shell.
    """

    def __init__(self) -> None:
        """Look at the parents, and have the system send SIGTERM when the nearest one ends."""
        self._chain = [os.getpid()]
        while (above := _parent_of(self._chain[-1])) and _is_launcher(above):
            self._chain.append(above)
        if len(self._chain) > 1:
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
        command = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return False
    return any(name in command for name in _LAUNCHERS)


def _parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None
