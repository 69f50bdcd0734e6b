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
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..readers import Label, Options, RawMolecule, open_text, source_name

NAME_COLUMNS = ("name", "title", "mol_id", "molecule_id", "id", "compound id", "cid", "iupac")
NUMBERING = {"", "idx", "index", "num", "no", "row", "unnamed: 0", *NAME_COLUMNS}
MISSING = {"", "nan", "na", "n/a", "none", "null", "-"}
SAMPLE = 1000  # rows that decide which columns are labels


@dataclass(frozen=True)
class Layout:
    """Where things stand in a table."""

    header: bool  # whether the first row is one
    smiles: int
    name: int | None
    labels: tuple[Label, ...]
    places: tuple[int, ...]  # the columns of the labels


def number(text: str) -> float:
    """Return a label, NaN where it is missing; ValueError if it is not a finite number."""
    if text.strip().lower() in MISSING:
        return math.nan
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def labels_from(texts: list[str], labels: tuple[Label, ...]) -> tuple[float, ...]:
    """Return the labels of one molecule.

    Raises:
        MoleculeError: one is neither a number nor missing.
    """
    try:
        return tuple([number(text) for text in texts])
    except ValueError:
        bad = next(i for i, text in enumerate(texts) if not is_number(text))
        reason = f"label {labels[bad].name} is not a number: {texts[bad][:40]!r}"
        raise MoleculeError(reason) from None


def delimiter_of(path: Path) -> str | None:
    """Return what separates the columns of a table, by its name; None: it is no table."""
    name = source_name(path).lower()
    return {"csv": ",", "tsv": "\t", "tab": "\t"}.get(name.rpartition(".")[2])


def rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each row that is not blank."""
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        line = 1
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1


def layout(path: Path, options: Options, delimiter: str) -> Layout:
    """Find the columns of a table.

    Raises:
        MsdeError: one that was asked for is not there, or no column holds SMILES.
    """
    sample = [cells for _, cells in itertools.islice(rows(path, delimiter), SAMPLE + 1)]
    first = [cell.strip() for cell in sample[0]] if sample else []
    found = _smiles_column(first)
    header = found is not None or (options.smiles_column in first if first else False)
    if not header:
        first = [str(place) for place in range(1, len(first) + 1)]
    names = {name: place for place, name in reversed(list(enumerate(first)))}
    if options.smiles_column is not None:
        smiles = _column(path, names, options.smiles_column)
    else:
        smiles = found or 0
    name = _name_column(path, names, options, header, smiles)
    body = sample[1:] if header else sample
    chosen = options.chosen_labels()
    if chosen is not None:
        places = tuple(_column(path, names, label.name) for label in chosen)
        return Layout(header, smiles, name, chosen, places)
    places = tuple(
        place
        for place, title in enumerate(first)
        if header
        and place not in (smiles, name)
        and title.lower() not in NUMBERING
        and all(is_number(cells[place]) for cells in body if place < len(cells))
    )
    return Layout(header, smiles, name, tuple(Label(first[p]) for p in places), places)


def read_table(path: Path, options: Options, delimiter: str) -> Iterator[RawMolecule]:
    """Yield each row with its SMILES as payload; cells that a row lacks are missing."""
    found = layout(path, options, delimiter)
    source = source_name(path)
    width = 1 + max(found.smiles, found.name or 0, *found.places)
    for line, cells in itertools.islice(rows(path, delimiter), int(found.header), None):
        cells += [""] * (width - len(cells))
        name = cells[found.name].strip() if found.name is not None else ""
        payload: str | MoleculeError = cells[found.smiles].strip()
        y: tuple[float, ...] = ()
        try:
            y = labels_from([cells[place] for place in found.places], found.labels)
        except MoleculeError as error:
            payload = error
        yield RawMolecule(source, line, name, payload, y)


def with_units(labels: tuple[Label, ...], units: dict[str, str]) -> tuple[Label, ...]:
    """Give labels that have none their units, by name."""
    return tuple(
        replace(label, unit=units.get(label.name, "")) if not label.unit else label
        for label in labels
    )


def _smiles_column(first: list[str]) -> int | None:
    exact = [place for place, name in enumerate(first) if name.lower() == "smiles"]
    loose = [place for place, name in enumerate(first) if "smiles" in name.lower()]
    return next(iter(exact + loose), None)


def _name_column(
    path: Path, names: dict[str, int], options: Options, header: bool, smiles: int
) -> int | None:
    if options.name_column is not None:
        return _column(path, names, options.name_column)
    if not header:
        return 1 if len(names) > 1 and smiles != 1 else None
    lower = {name.lower(): place for name, place in reversed(names.items())}
    return next((lower[name] for name in NAME_COLUMNS if name in lower), None)


def _column(path: Path, names: dict[str, int], wanted: str) -> int:
    if wanted not in names:
        raise MsdeError(f"{path} has no column {wanted!r}, found {', '.join(names)[:300]}")
    return names[wanted]


def is_number(text: str) -> bool:
    """Tell whether a text is a number, or blank."""
    try:
        number(text)
    except ValueError:
        return False
    return True
