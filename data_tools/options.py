"""Options of commands that read files of molecules: how the files are read."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from msde.errors import MsdeError

from .readers import FORMATS, Options
from .reading import AUTO


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the files of any format are read."""
    add = parser.add_argument
    add("--format", default=AUTO, choices=(AUTO, *FORMATS), help="default: by the name")
    add("--keep-hydrogens", action=argparse.BooleanOptionalAction, help="default: by the format")
    add("--group-conformers", action="store_true", help="neighbours of one title are one molecule")
    add("--smiles-column", metavar="NAME", help="of a table; default: one named like one")
    add("--name-column", metavar="NAME", help="of a table; default: one named like one")
    add("--label-columns", type=_names, metavar="NAME[=UNIT],...", help="default: all of numbers")
    add(
        "--label-column", action="append", default=[], metavar="NAME[=UNIT]",
        help="one, whose name may hold commas; can be repeated",
    )  # fmt: skip
    add("--energy-key", metavar="NAME", help="of files with several energies")
    add("--forces-key", metavar="NAME", help="of files with several arrays of forces")
    add("--charge", type=int, metavar="N", help="of molecules whose file states none; default: 0")
    add("--encoding", metavar="NAME", help="of text; default: found")
    add("--delimiter", metavar="CHARACTER", help="of a table; default: found")
    add("--trust-pickle", action="store_true", help="read pickles, which can run any program")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def reader_options(arguments: argparse.Namespace, **others: Any) -> Options:
    """Return the options that a command line gives to readers.

    Args:
        others: options that are no arguments of this command.

    Raises:
        MsdeError: a delimiter is more than one character.
    """
    if arguments.delimiter is not None and len(arguments.delimiter) != 1:
        raise MsdeError("--delimiter is one character; give a tab as $'\\t'")
    given = {f.name: getattr(arguments, f.name) for f in fields(Options) if f.name in arguments}
    if arguments.label_column:
        given["label_columns"] = (*(arguments.label_columns or ()), *arguments.label_column)
    return Options(**given | others)
