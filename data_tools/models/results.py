"""Output files of the commands with a model, and messages about molecules without a result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from msde.chem.vocabulary import MoleculeError
from msde.cli import check_writable
from msde.files import write_atomically

from ..sets.exporting import check_sd_name, open_sd_file

Given, Result = TypeVar("Given"), TypeVar("Result")
CHUNK = 256  # molecules that are handled together
SHOWN = 10  # molecules of each kind whose reasons or notes are printed


def check_sd_output(output: Path) -> None:
    """Raise an MsdeError unless an SD file can be written there."""
    check_sd_name(output)
    check_writable(output)


def write_sd_results(
    output: Path, what: str, results: Iterable[str | MoleculeError], total: int
) -> int:
    """Write the records of molecules to an SD file; print the reasons of those without.

    Args:
        what: what a molecule gets, as messages call it, such as "conformers".
        results: the records of each molecule as text, or where it stands and the reason.
        total: number of molecules.

    Returns:
        How many have records.
    """
    failed: list[str] = []

    def write(path: Path) -> None:
        with open_sd_file(path, is_compressed=output.suffix == ".gz") as file:
            for result in tqdm(results, total=total, disable=None):
                if isinstance(result, MoleculeError):
                    failed.append(str(result))
                else:
                    file.write(result.encode())

    write_atomically(output, write)
    for line in failed[:SHOWN]:
        sys.stderr.write(f"no {what} of {line}\n")
    if len(failed) > SHOWN:
        sys.stderr.write(f"... and of {len(failed) - SHOWN} more\n")
    return total - len(failed)


def in_order(
    given: Sequence[Given | MoleculeError], work: Callable[[list[Given]], Iterator[Result]]
) -> Iterator[Result | MoleculeError]:
    """Yield the results of what could be read, and the errors of the rest in their places.

    Args:
        work: yields the result of each item, in order.
    """
    for first in range(0, len(given), CHUNK):
        part = given[first : first + CHUNK]
        found = work([item for item in part if not isinstance(item, MoleculeError)])
        for item in part:
            yield item if isinstance(item, MoleculeError) else next(found)


def add_notes(notes: dict[int, str], more: Mapping[int, str]) -> None:
    """Put a reader's notes before those of a model, each part once."""
    for number, note in more.items():
        parts = [*note.split("; "), *notes.get(number, note).split("; ")]
        notes[number] = "; ".join(dict.fromkeys(parts))


def note_property(note: str) -> str:
    """Return a note as a property of a record of an SD file, or nothing."""
    return f">  <note>\n{note}\n\n" if note else ""


def places(names: Iterable[str], lines: Iterable[int]) -> list[str]:
    """Return the line and the name of each molecule of a file, for messages."""
    return [
        f"line {n} ({name})" if name else f"line {n}" for name, n in zip(names, lines, strict=True)
    ]


def print_notes(
    done: str, where: Sequence[str], reasons: Mapping[int, str], notes: Mapping[int, str]
) -> None:
    """Print why molecules have no result, and what is unusual about others.

    Args:
        done: what was done to the others, such as "embedded".
        where: line and name, or id, of each molecule.
    """
    kinds: Sequence[tuple[str, Mapping[int, str]]] = (
        (f"not {done}", reasons),
        (f"{done}, but", notes),
    )
    for kind, texts in kinds:
        for number, text in list(texts.items())[:SHOWN]:
            sys.stderr.write(f"{where[number]} {kind}: {text}\n")
        if len(texts) > SHOWN:
            sys.stderr.write(f"... and {len(texts) - SHOWN} more\n")
