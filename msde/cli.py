"""The command line: a parser whose errors are one line, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from msde.errors import MsdeError


class OneLineParser(argparse.ArgumentParser):
    """A command-line parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what `report_errors` prints."""
        raise MsdeError(f"{message}; see --help")


def report_errors(main: Callable[[], None]) -> None:
    """Run a command and end the process; an MsdeError becomes one line on stderr and an exit code.

    Of several ranks with the same error only the first speaks. The others give it time to: a
    launcher that sees one of them exit would end the first in mid-sentence.
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
    """End the process with an exit code; a rank at once.

    Python would wait for the threads of failed collectives, and a thread that is late in letting go
    of a collective's objects while Python ends aborts the process: its exit code would be lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)
