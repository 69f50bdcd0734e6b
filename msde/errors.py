"""Errors that users read: one line each, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterator


class MsdeError(Exception):
    """An error the user can fix; its message says what was found, what was expected, what to do."""

    exit_code = 2
    collected: list[MsdeError]  # only of an error that stands for several
    report_immediately = False  # or else rank 0 gets the time to report the same error first


class DataDamaged(MsdeError):
    """A shard or manifest whose bytes are not those that were written."""

    exit_code = 6


class DiskFull(MsdeError):
    """There is no room for a file that has to be written."""


class InUse(MsdeError):
    """Another process works in the folder, or died a moment ago on another machine."""

    exit_code = 7


class NotFinite(MsdeError):
    """Too many steps in a row have losses or gradients that are not finite."""

    exit_code = 5


class NoCheckpoint(MsdeError):
    """There is no valid checkpoint to resume from, although one is required."""

    exit_code = 3


class ErrorList:
    """Collects errors, so that the user sees all of them at once."""

    def __init__(self) -> None:
        """Start with an empty list."""
        self.errors: list[MsdeError] = []

    def add(self, message: str) -> None:
        """Add an error with this message."""
        self.errors.append(MsdeError(message))

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Add the MsdeError that is raised inside instead of passing it on."""
        try:
            yield
        except MsdeError as error:
            self.errors.extend(getattr(error, "collected", [error]))

    def raise_if_any(self) -> None:
        """Raise what was collected.

        Raises:
            MsdeError: the only error, or one that lists all of them.
        """
        if len(self.errors) > 1:
            lines = "".join(f"\n  {error}" for error in self.errors)
            error = MsdeError(f"{len(self.errors)} problems:{lines}")
            error.collected = self.errors
            raise error
        for error in self.errors:
            raise error


def require(rules: dict[str, bool]) -> None:
    """Raise an MsdeError that lists all rules that do not hold."""
    errors = ErrorList()
    for rule in (rule for rule, holds in rules.items() if not holds):
        errors.add(rule)
    errors.raise_if_any()


def require_name(where: object, kind: str, wanted: str, names: Collection[str]) -> None:
    """Raise an MsdeError if a column, label or property is not among the names of a file."""
    if wanted not in names:
        found = ", ".join(names)[:300] or "none"
        hint = did_you_mean(wanted, names)
        raise MsdeError(f"{where} has no {kind} {wanted!r}, found {found}{hint}")


def did_you_mean(wanted: str, names: Collection[str]) -> str:
    """Return '; did you mean ...?' for a name that is misspelt, in whichever case, or nothing."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def one_line(error: Exception) -> str:
    """Return the message of a library's error on one line, of 200 characters at most."""
    return " ".join(str(error).split())[:200]
