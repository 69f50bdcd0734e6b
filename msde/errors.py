"""Errors that users read: one line each, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


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
