"""Output files of the commands with a model, and messages about molecules without a result.

This module does not import torch, so that a command can report a wrong --output before it loads
it, which takes seconds.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from msde.chem.vocabulary import MoleculeError
from msde.cli import check_writable
from msde.data.shards import ShardDataset
from msde.downstream.labels import names_of
from msde.errors import MsdeError
from msde.files import write_atomically

from ..options import SPECIAL, Options
from ..sets.exporting import check_sd_name, open_sd_file

Given, Result = TypeVar("Given"), TypeVar("Result")
SHOWN = 10  # molecules of each kind whose reasons or notes are printed


def check_output(output: Path, *endings: str) -> None:
    """Raise an MsdeError unless the file has one of these endings and can be written."""
    if output.suffix not in endings:
        raise MsdeError(f"--output {output} should end in {' or '.join(endings)}")
    check_writable(output)


def check_vector_output(output: Path, level: str, projector: Path | None) -> None:
    """Raise an MsdeError unless the vectors of a level can be written there."""
    if projector is not None and level == "node":
        raise MsdeError("--projector shows molecules, not the atoms of --level node")
    check_output(output, ".npz", ".csv")
    if output.suffix == ".csv" and level == "node":
        raise MsdeError("--level node has a row an atom, which only an --output .npz can hold")


def check_sd_output(output: Path) -> None:
    """Raise an MsdeError unless an SD file can be written there."""
    check_sd_name(output)
    check_writable(output)


def write_sd_results(
    output: Path, what: str, results: Iterable[str | MoleculeError], where: Sequence[str]
) -> int:
    """Write the records of molecules to an SD file; print the reasons of those without.

    Args:
        what: what a molecule gets, as messages call it, such as "conformers".
        results: the records of each molecule as text, or the reason why there are none.
        where: line and name, or id, of each molecule.

    Returns:
        How many have records.

    Raises:
        MsdeError: none has, and no file is written.
    """
    failed: list[tuple[str, str]] = []

    def write(path: Path) -> None:
        with open_sd_file(path, is_compressed=output.suffix == ".gz") as file:
            shown = tqdm(results, total=len(where), disable=None)
            for place, result in zip(where, shown, strict=True):
                if isinstance(result, MoleculeError):
                    failed.append((place, str(result)))
                else:
                    file.write(result.encode())
        for place, reason in failed[:SHOWN]:
            sys.stderr.write(f"no {what} of {place}: {reason}\n")
        if len(failed) > SHOWN:
            sys.stderr.write(f"... and of {len(failed) - SHOWN} more\n")
        if failed and len(failed) == len(where):
            [(reason, count)] = collections.Counter(reason for _, reason in failed).most_common(1)
            of_some = f" ({count} of them)" if count < len(where) else ""
            raise MsdeError(f"no {what} of any of {len(where)} molecules: {reason}{of_some}")

    write_atomically(output, write)
    return len(where) - len(failed)


def in_order(
    given: Sequence[Given | MoleculeError], work: Callable[[list[Given]], Iterator[Result]]
) -> Iterator[Result | MoleculeError]:
    """Yield the results of what could be read, and the errors of the rest in their places.

    A result without a molecule is an error, too, with its reason.

    Args:
        work: yields the result of each item, in order.
    """
    found = work([item for item in given if not isinstance(item, MoleculeError)])
    for item in given:
        one = item if isinstance(item, MoleculeError) else next(found)
        is_missing = not isinstance(one, MoleculeError) and one.mol is None
        yield MoleculeError(one.reason) if is_missing else one


def add_notes(notes: dict[int, str], more: Mapping[int, str]) -> None:
    """Put a reader's notes before those of a model, each part once."""
    for number, note in more.items():
        parts = [*note.split("; "), *notes.get(number, note).split("; ")]
        notes[number] = "; ".join(dict.fromkeys(parts))


def sd_property(name: str, value: object) -> str:
    """Return a property of a record of an SD file, or nothing where its value is empty."""
    return f">  <{name}>\n{value}\n\n" if value != "" else ""


def places(names: Iterable[str], lines: Iterable[int]) -> list[str]:
    """Return the line and the name of each molecule of a file, for messages."""
    return [
        f"line {n} ({name})" if name else f"line {n}" for name, n in zip(names, lines, strict=True)
    ]


def open_shards(path: Path, options: Options) -> ShardDataset | None:
    """Return the data set in a folder of shards, None where the path is a file.

    Raises:
        MsdeError: a folder holds none, or an option says how a file is read.
    """
    if not path.is_dir():
        return None
    options.refuse((*SPECIAL, "label_columns"), f"{path}, which is a folder of shards")
    return ShardDataset(path)


def ids_of_shards(dataset: ShardDataset) -> tuple[list[str], list[str], np.ndarray]:
    """Return names, uids of 16 hexadecimal digits, and labels of a data set's molecules.

    The labels are (num_molecules, num_labels), NaN where missing. The shards are read once.
    """
    names: list[str] = []
    uids: list[str] = []
    y: list[np.ndarray] = []
    for block in dataset.blocks():
        names += names_of(block)
        uids += [f"{uid:016x}" for uid in block.uid.tolist()]
        y.append(block.y)
    return names, uids, np.concatenate(y)


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
