"""Requests to stop, by a signal or a file named STOP, and markers of how a run has ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType

from msde.cluster import ranks
from msde.files import sealed, write_text

log = logging.getLogger("msde")

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # SIGUSR1 is NCCL's
STOP, PREEMPTED, DONE = "STOP", "PREEMPTED", "DONE"
LAUNCHER_GONE = "the launcher is gone"


class StopRequest:
    """Notices requests to stop this rank; the ranks agree on them at the next step.

    A launcher signals its processes one after the other, so the ranks notice at different times,
    and some not at all.
    """

    def __init__(self, output: Path) -> None:
        """The first rank looks for the file; until `listen` a signal ends the process at once.

        A rank that waits for the others to join does so in C++, where no handler of Python runs.
        """
        self._by: str | None = None
        self._file = output / STOP if ranks.rank() == 0 else None
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python has a handler for it

    def listen(self) -> None:
        """Take signals as requests from now on; a second Ctrl-C ends the process at once."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(
            target=_count_interrupts, args=[reader], name="ctrl-c", daemon=True
        ).start()
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, self._notice)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._by = signal.Signals(number).name  # little else is safe in a handler

    def ask(self, reason: str) -> None:
        """Request this rank to stop."""
        self._by = reason

    @property
    def asked(self) -> bool:
        """Whether a request has reached this rank."""
        return self._by is not None or (self._file is not None and self._file.exists())

    def fulfil(self, step: int) -> None:
        """Write the marker PREEMPTED after the checkpoint is complete; first rank only."""
        if self._file is not None:
            by = self._by or f"another rank or the file {STOP}"
            mark(self._file.parent, PREEMPTED, {"step": step, "by": by})
            self.settle()
            log.info("stopped at step %d; the same command resumes from there", step)

    def settle(self) -> None:
        """Remove the file, so that it does not stop the next start of the run."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _count_interrupts(reader: int) -> None:
    """End the process at the second Ctrl-C, also while its main thread waits in C++."""
    count = 0
    while count < 2:
        count += os.read(reader, 1)[0] == signal.SIGINT
    os._exit(128 + signal.SIGINT)


def mark(output: Path, name: str, facts: dict[str, int | str]) -> None:
    """Write a marker, DONE or PREEMPTED, from which scripts learn how the run has ended."""
    write_text(output / name, sealed(facts))


def clear_marks(output: Path) -> None:
    """Remove the markers of an earlier start of the run."""
    for name in (DONE, PREEMPTED):
        (output / name).unlink(missing_ok=True)
