"""Tables of molecules: which columns hold SMILES, names and labels, and the rows.

The first row is a header if one of its cells names SMILES (or is the column that was asked for).
Without a header columns are known by their numbers, from 1: the first holds SMILES, the second
names. With one, SMILES stand in the column named `smiles`, or whose name contains that, and names
in the first of NAME_COLUMNS. Labels are those columns in which all of the first 1,000 rows hold
numbers or nothing; columns that number the rows (NUMBERING) are not among them.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .files import open_text, source_name
from .labels import choose_labels, is_number, labels_from, require_name
from .types import Label, Options, Scanned, attempt

NAME_COLUMNS = ("name", "title", "mol_id", "molecule_id", "id", "compound id", "cid", "iupac")
NUMBERING = {"", "idx", "index", "num", "no", "row", "unnamed: 0", *NAME_COLUMNS}
SAMPLE = 1000  # rows that decide which columns are labels


@dataclass(frozen=True)
class Layout:
    """The columns of a table, by number."""

    header: bool  # whether the first row is one
    smiles: int
    name: int | None
    labels: tuple[Label, ...]
    places: tuple[int, ...]  # the columns of the labels


def delimiter_of(path: Path) -> str | None:
    """Return the separator of the columns of a table, by its name; None: it is no table."""
    name = source_name(path).lower()
    return {"csv": ",", "tsv": "\t", "tab": "\t"}.get(name.rpartition(".")[2])


def rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each row that is not blank."""
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        line = 1
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1


def layout(path: Path, options: Options, delimiter: str = ",") -> Layout:
    """Find the columns of a table.

    Raises:
        MsdeError: one that was asked for is not there, or no column holds SMILES.
    """
    sample = [cells for _, cells in itertools.islice(rows(path, delimiter), SAMPLE + 1)]
    first = [cell.strip() for cell in sample[0]] if sample else []
    found = _smiles_column(first)
    header = found is not None or options.smiles_column in first
    if not header:
        first = [str(place) for place in range(1, len(first) + 1)]
    body = sample[1:] if header else sample
    names: dict[str, int] = {}
    for place, title in enumerate(first):
        names.setdefault(title, place)

    def place_of(wanted: str) -> int:
        require_name(path, "column", wanted, names)
        return names[wanted]

    smiles = found or 0 if options.smiles_column is None else place_of(options.smiles_column)
    if options.name_column is not None:
        name = place_of(options.name_column)
    else:
        name = _name_column(first, smiles, header)

    def is_label(title: str) -> bool:
        place = names[title]
        return (
            header
            and place not in (smiles, name)
            and title.lower() not in NUMBERING
            and all(is_number(cells[place]) for cells in body if place < len(cells))
        )

    labels = choose_labels(path, options, names, is_label, "column")
    return Layout(header, smiles, name, labels, tuple(names[label.name] for label in labels))


def read_table(path: Path, options: Options, delimiter: str = ",") -> Iterator[Scanned]:
    """Yield each row with its SMILES as payload; cells that a row lacks are missing."""
    found = layout(path, options, delimiter)
    width = 1 + max(found.smiles, found.name or 0, *found.places)
    for line, cells in itertools.islice(rows(path, delimiter), int(found.header), None):
        cells += [""] * (width - len(cells))
        name = cells[found.name].strip() if found.name is not None else ""
        yield line, name, *attempt(_smiles_and_labels, cells, found)


def header_of(path: Path) -> list[str]:
    """Return the cells of the first row, stripped."""
    first = next(rows(path), (0, []))[1]
    return [cell.strip() for cell in first]


def _smiles_and_labels(cells: list[str], found: Layout) -> tuple[str, tuple[float, ...]]:
    y = labels_from([cells[place] for place in found.places], found.labels)
    return cells[found.smiles].strip(), y


def _smiles_column(first: list[str]) -> int | None:
    exact = [place for place, name in enumerate(first) if name.lower() == "smiles"]
    loose = [place for place, name in enumerate(first) if "smiles" in name.lower()]
    return next(iter(exact + loose), None)


def _name_column(first: list[str], smiles: int, header: bool) -> int | None:
    if not header:
        return 1 if len(first) > 1 and smiles != 1 else None
    lower = [name.lower() for name in first]
    return next((lower.index(name) for name in NAME_COLUMNS if name in lower), None)
