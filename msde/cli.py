"""The command line: a parser with one-line errors, and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from msde.errors import MsdeError, did_you_mean
from msde.files import disk_full_as_error

T = TypeVar("T")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that ends the text of each option with its allowed values and its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, facts = action.help or "", []
        # Without a metavar argparse shows the choices in its place.
        if action.choices is not None and action.metavar is not None:
            facts.append(f"one of {', '.join(map(str, action.choices))}")
        values = action.default if isinstance(action.default, list) else [action.default]
        told = "default" in text or action.default in (None, argparse.SUPPRESS, [])
        if not told and not isinstance(action.default, bool):
            facts.append(f"default: {' '.join(map(str, values))}")
        return f"{text} ({'; '.join(facts).replace('%', '%%')})" if facts else text


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises an MsdeError instead of printing the usage."""

    def __init__(self, *arguments: Any, example: str = "", **options: Any) -> None:
        """Build a parser.

        Args:
            example: a whole command, with which the help ends.
        """
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("epilog", f"example:\n  {example}")
        super().__init__(*arguments, **options)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = list(map(str, action.choices))
            hint = did_you_mean(str(value), allowed)
            text = f"found {value!r}, expected one of {', '.join(allowed)}{hint}"
            raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """Raise an error that `report_errors` prints."""
        raise MsdeError(f"{message}; see --help")


def from_arguments(kind: Callable[..., T], arguments: argparse.Namespace) -> T:
    """Return a dataclass whose fields have the values of the arguments of the same names."""
    names = (field.name for field in fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in names if name in arguments})


def check_exist(*paths: Path) -> None:
    """Raise an MsdeError that names the first path that does not exist."""
    for path in paths:
        if not path.exists():
            raise MsdeError(f"{path} cannot be read: it does not exist")


def named_folder(text: str, default: str) -> tuple[str, Path]:
    """Return the name and the folder of an option `[NAME=]DIR`; a DIR may hold equals signs.

    Args:
        default: the name where none is given.

    Raises:
        MsdeError: there is no such folder.
    """
    whole, match = Path(text), re.fullmatch(r"([\w ]+)=(.+)", text)
    if match and not whole.exists():
        if not Path(match[2]).exists():
            raise MsdeError(
                f"neither {text} exists nor, if {match[1]!r} is its name as in NAME=DIR, {match[2]}"
            )
        return match[1], Path(match[2])
    check_exist(whole)
    return default, whole


def check_writable(output: Path) -> None:
    """Raise an MsdeError unless a file can be made in the folder of `output`."""
    if not os.access(output.parent, os.W_OK):
        raise MsdeError(f"--output {output}: its folder does not exist or is not writable")


def report_errors(main: Callable[[], None]) -> None:
    """Run a command and end the process; an MsdeError becomes one line on stderr and an exit code.

    The other ranks wait a while before they report and exit, because a launcher that sees a rank
    exit ends all others: of an error that all ranks have, only the first rank's line is printed.
    """
    try:
        with disk_full_as_error():
            main()
    except MsdeError as error:
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" on rank {rank}"
        if where and not error.report_immediately:
            time.sleep(5)
        sys.stderr.write(f"error{where}: {error}\n")
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
