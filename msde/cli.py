"""The command line: a parser with one-line errors, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from msde.errors import MsdeError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises an MsdeError instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise an error that `report_errors` prints."""
        raise MsdeError(f"{message}; see --help")


def check_exist(*paths: Path) -> None:
    """Raise an MsdeError that names the first path that does not exist."""
    for path in paths:
        if not path.exists():
            raise MsdeError(f"{path} cannot be read: it does not exist")


def report_errors(main: Callable[[], None]) -> None:
    """Run a command and end the process; an MsdeError becomes one line on stderr and an exit code.

    The other ranks wait a while before they report and exit, because a launcher that sees a rank
    exit ends all others: of an error that all ranks have, only the first rank's line is printed.
    """
    try:
        main()
    except MsdeError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank and not error.report_immediately:
            time.sleep(5)
        sys.stderr.write(f"error: {error}\n" if not rank else f"error on rank {rank}: {error}\n")
        _leave(error.exit_code)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End the process with an exit code; a rank without Python's cleanup.

    Python would wait for the threads of failed collectives, and a thread that still holds a
    collective's objects while Python ends aborts the process, which loses the exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)
