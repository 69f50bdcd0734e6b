"""What commands with a model share about their results: the output file, and what is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError
from msde.files import write_atomically

from ..sets.exporting import check_sd_name, open_sd_file

SHOWN = 10  # molecules of each kind whose reasons or notes are printed


def check_writable(output: Path) -> None:
    """Raise an MsdeError unless a file can be made in the folder of `output`."""
    if not os.access(output.parent, os.W_OK):
        raise MsdeError(f"--output {output}: its folder does not exist or is not writable")


def check_sd_output(output: Path) -> None:
    """Raise an MsdeError unless an SD file can be written there."""
    check_sd_name(output)
    check_writable(output)


def write_sd_results(
    output: Path, what: str, results: Iterable[str | MoleculeError], total: int
) -> int:
    """Write the records of molecules to an SD file; print the reasons of those without.

    Args:
        what: they have, in messages.
        results: of each molecule its records as text, or its name and the reason.
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


def add_notes(notes: dict[int, str], more: Mapping[int, str]) -> None:
    """Put a reader's notes before those of a model, each part once."""
    for number, note in more.items():
        parts = [*note.split("; "), *notes.get(number, note).split("; ")]
        notes[number] = "; ".join(dict.fromkeys(parts))


def places(names: Iterable[str], lines: Iterable[int]) -> list[str]:
    """Return how each molecule of a file is called in messages: its line, and its name."""
    return [
        f"line {n} ({name})" if name else f"line {n}" for name, n in zip(names, lines, strict=True)
    ]


def print_notes(
    done: str, where: Sequence[str], reasons: Mapping[int, str], notes: Mapping[int, str]
) -> None:
    """Print why molecules have no result, and what is unusual about others.

    Args:
        done: what was done to them, in messages.
        where: how each molecule is called in messages.
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
