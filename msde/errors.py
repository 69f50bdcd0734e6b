"""Errors that users read: one line each, and the exit code that goes with it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn


class MsdeError(Exception):
    """Something the user can mend; the message says what was found, expected and to do."""

    exit_code = 2
    at_once = False  # whether it must be told, and the process end, without waiting for anything


class DataDamaged(MsdeError):
    """A shard or manifest that is not what was written."""

    exit_code = 6


class DiskFull(MsdeError):
    """There is no room for a file that has to be written."""


class NotFinite(MsdeError):
    """A loss that is not a finite number any more."""

    exit_code = 5


class NoCheckpoint(MsdeError):
    """No checkpoint to resume from although one is required."""

    exit_code = 3


class OneLineParser(argparse.ArgumentParser):
    """A command-line parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what `report_errors` prints."""
        raise MsdeError(f"{message}; see --help")


def report_errors(main: Callable[[], None]) -> None:
    """Run a command; an MsdeError becomes one line on stderr and its exit code.

    Of several ranks with the same error only the first speaks. The others give it time to: a
    launcher that sees one of them exit would end the first in mid-sentence.
    """
    try:
        main()
    except MsdeError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank and not error.at_once:
            time.sleep(5)
        sys.stderr.write(f"error: {error}\n" if not rank else f"error on rank {rank}: {error}\n")
        sys.stderr.flush()
        if error.at_once:
            os._exit(error.exit_code)  # at its end Python would wait for threads of collectives
        sys.exit(error.exit_code)
