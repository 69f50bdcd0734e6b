"""Errors that users read: one line each, and the exit code that goes with it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn


class MsdeError(Exception):
    """Something the user can mend; the message says what was found, expected and to do."""

    exit_code = 2
    several: list[MsdeError]  # only of errors that stand for others
    at_once = False  # whether it must be told without giving the first rank time to speak


class DataDamaged(MsdeError):
    """A shard or manifest that is not what was written."""

    exit_code = 6


class DiskFull(MsdeError):
    """There is no room for a file that has to be written."""


class NotFinite(MsdeError):
    """Losses or gradients that are not finite any more."""

    exit_code = 5


class NoCheckpoint(MsdeError):
    """No checkpoint to resume from although one is required."""

    exit_code = 3


class Problems:
    """Collects mistakes, so that whoever made them sees them all at once."""

    def __init__(self) -> None:
        """Start without any."""
        self.found: list[MsdeError] = []

    def add(self, message: str) -> None:
        """Note a mistake."""
        self.found.append(MsdeError(message))

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keep the MsdeError that is raised inside for later."""
        try:
            yield
        except MsdeError as error:
            self.found.extend(getattr(error, "several", [error]))

    def tell(self) -> None:
        """Raise what was found.

        Raises:
            MsdeError: it, where it is one, or one that names them all.
        """
        if len(self.found) > 1:
            lines = "".join(f"\n  {error}" for error in self.found)
            error = MsdeError(f"{len(self.found)} problems:{lines}")
            error.several = self.found
            raise error
        for error in self.found:
            raise error


def insist(rules: dict[str, bool]) -> None:
    """Raise an MsdeError that names all rules that do not hold."""
    problems = Problems()
    for rule in (rule for rule, holds in rules.items() if not holds):
        problems.add(rule)
    problems.tell()


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
        if rank and not error.at_once:
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
