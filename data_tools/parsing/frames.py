"""The text of XYZ files: frames, what their comments say, and atoms.

A comment is one of

- extended XYZ: `key=value` pairs, of which `Properties` names the columns;
- a number, the energy (a whole number may count frames, and is none);
- `energy;[[fx,fy,fz],...]`, as the first files of MD17;
- `gdb N` and 15 numbers, as the raw files of QM9, which have three more lines after the atoms;
- text, in which `energy: -1.5`, `E -1.5` and `charge -1` are found; without these it is the name.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .files import open_text

MAX_FRAME = 10_000_000  # atoms; a larger number of them is no number of atoms
MAX_NAME = 80  # letters; longer text is no name
PAIR = re.compile(r"""([\w:.-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|[^\s"']+)""")
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
ENERGY = re.compile(rf"(?<!\S)([Ee]nergy|ENERGY|E)(?:\s*:\s*|\s+)({NUMBER})(?!\S)")
CHARGE = re.compile(r"(?i)(?<!\S)(charge)(?:\s*:\s*|\s+)([+-]?\d+)(?!\S)")
ENERGY_AND_FORCES = re.compile(rf"\s*({NUMBER})\s*;\s*(\[\s*\[.*\]\s*\])\s*")
GDB = re.compile(r"gdb\s+(\d+)((?:\s+\S+){15})\s*")
GDB_VALUES = "A B C mu alpha homo lumo gap r2 zpve u0 u298 h298 g298 cv".split()
GDB_LINES = 3  # after the atoms: frequencies, SMILES and InChI
IN_COMMENT, AFTER_POSITIONS = "comment", "columns 5 to 7"  # where forces may stand without a name
PLAIN = "species:S:1:pos:R:3"
SPECIES = ("species", "element", "elements", "symbol", "symbols", "z", "atomic_numbers", "numbers")
POSITIONS = ("pos", "positions", "position", "coords", "coordinates")
LABEL = re.compile(r"([A-Za-z]{1,3})[\d_(\-+.'*].*")  # an element and what tells its atoms apart
GREEK = "ABGDEZH"  # Latin for places in a residue: CA1 is calcium, or the carbon alpha
ISOTOPE = re.compile(r"(\d{1,3})([A-Z][a-z]?)")

Columns = dict[str, slice]


@dataclass(frozen=True)
class Comment:
    """What the comment of a frame says."""

    values: dict[str, str]
    properties: str = PLAIN
    forces: str = ""  # as JSON
    name: str = ""
    line: str = ""
    is_gdb: bool = False

    @property
    def text(self) -> str:
        """What has no key."""
        return " ".join(PAIR.sub(" ", self.line).split())


@dataclass(frozen=True)
class Atoms:
    """The atoms of a frame."""

    numbers: np.ndarray  # (num_atoms,)
    position: np.ndarray  # (num_atoms, 3)
    forces: np.ndarray | None  # (num_atoms, 3)
    isotopes: tuple[tuple[int, int], ...] = field(default=())  # atom, isotope


def frames(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield the first line, the comment and the lines of the atoms of each frame.

    Raises:
        MsdeError: a frame does not begin with the number of its atoms, or is cut off.
    """
    with open_text(path, encoding) as file:
        line = 1
        for first in file:
            if not first.strip():
                line += 1
                continue
            count = _count(path, line, first.strip())
            comment = file.readline().strip()
            atoms = tuple(itertools.islice(file, count))
            if len(atoms) < count:
                raise MsdeError(f"{path}: the frame that begins in line {line} is cut off")
            yield line, comment, atoms
            line += count + 2
            if GDB.fullmatch(comment):
                line += sum(1 for _ in itertools.islice(file, GDB_LINES))


def _count(path: Path, line: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) <= MAX_FRAME):
        raise MsdeError(f"{path}: line {line} is {text[:40]!r}, expected a number of atoms")
    return int(text)


def read_comment(comment: str) -> Comment:
    """Return what a comment says."""
    pairs = {key: value.strip("\"'{}[]").strip() for key, value in PAIR.findall(comment)}
    if pairs:
        named = next((key for key in pairs if key.lower() == "properties"), None)
        return Comment(pairs, pairs.pop(named) if named else PLAIN, line=comment)
    if found := ENERGY_AND_FORCES.fullmatch(comment):
        return Comment({"energy": found[1]}, forces=found[2])
    if found := GDB.fullmatch(comment):
        values = dict(zip(GDB_VALUES, _plain_numbers(found[2]).split(), strict=True))
        return Comment(values, name=f"gdb_{found[1]}", is_gdb=True)
    if re.fullmatch(NUMBER, comment) and not comment.lstrip("+-").isdigit():
        return Comment({"energy": comment})
    values = dict(ENERGY.findall(comment) + CHARGE.findall(comment))
    is_name = not values and len(comment) <= MAX_NAME and any(map(str.isalpha, comment))
    return Comment(values, name=comment if is_name else "", line=comment)


def value_in(values: Mapping[str, str], *names: str) -> str | None:
    """Return the first of the values that there is; names are compared in lower case."""
    return next((values[key] for key in values if key.lower() in names), None)


@functools.lru_cache(maxsize=64)
def columns_of(properties: str, num_cells: int) -> Columns:
    """Return which cells of an atom's line hold which property, by its name in the file."""
    parts = properties.split(":")
    columns, start = {}, 0
    for name, width in zip(parts[::3], parts[2::3], strict=False):
        if not width.isdecimal():
            return {}
        columns[name] = slice(start, start + int(width))
        start += int(width)
    if properties == PLAIN and num_cells == 7:
        columns[AFTER_POSITIONS] = slice(4, 7)
    return columns


def read_atoms(comment: Comment, lines: tuple[str, ...], first: int, forces: str | None) -> Atoms:
    """Read the atoms of a frame.

    Args:
        first: the number of the first of the lines.
        forces: where forces stand; a frame may have none.

    Raises:
        MoleculeError: a line is not one of an atom; the reason names the line.
    """
    cells = [_plain_numbers(line).split() for line in lines]
    columns = columns_of(comment.properties, len(cells[0]) if cells else 0)
    lower = {name.lower(): name for name in columns}
    species = next((lower[name] for name in SPECIES if name in lower), None)
    place = next((lower[name] for name in POSITIONS if name in lower), None)
    if species is None or place is None:
        raise MoleculeError(f"cannot be parsed: Properties={comment.properties[:60]} lacks "
                            "species:S:1 or pos:R:3")  # fmt: skip
    symbol = columns[species].start
    elements = [_element(row[symbol] if row else "", first + i) for i, row in enumerate(cells)]
    found = None
    if forces == IN_COMMENT and comment.forces:
        found = _array_in_comment(comment.forces, len(cells))
    elif forces in columns:
        found = _array(cells, columns[forces], first)
    return Atoms(
        np.array([number for number, _ in elements]),
        _array(cells, columns[place], first),
        found,
        tuple((atom, isotope) for atom, (_, isotope) in enumerate(elements) if isotope),
    )


def _plain_numbers(text: str) -> str:
    return text.replace("*^", "e") if "*^" in text else text  # as in QM9: 1.3*^-6


def _array(cells: list[list[str]], columns: slice, first: int) -> np.ndarray:
    try:
        return np.array([row[columns] for row in cells], np.float64).reshape(len(cells), 3)
    except ValueError:
        for number, row in enumerate(cells, start=first):
            if len(row) < columns.stop:
                raise MoleculeError(
                    f"cannot be parsed: line {number} has {len(row)} columns, "
                    f"expected {columns.stop} or more"
                ) from None
            for cell in row[columns]:
                _require_float(cell, number)
        raise MoleculeError("cannot be parsed: positions and forces need three columns") from None


def _require_float(cell: str, line: int) -> None:
    try:
        float(cell)
    except ValueError:
        message = f"cannot be parsed: line {line} has {cell[:20]!r}, expected a number"
        raise MoleculeError(message) from None


def _array_in_comment(text: str, num_atoms: int) -> np.ndarray:
    try:
        found = np.array(json.loads(text), np.float64)
    except ValueError:
        found = np.zeros(0)
    if found.shape != (num_atoms, 3):
        raise MoleculeError("cannot be parsed: the forces in the comment do not fit the atoms")
    return found


def _elements() -> dict[str, tuple[int, int]]:
    """Return atomic number and isotope, 0 for the natural mixture, by symbol and by number."""
    table = Chem.GetPeriodicTable()
    found = {table.GetElementSymbol(z): (z, 0) for z in range(1, 119)}
    found |= {"D": (1, 2), "T": (1, 3)}
    return found | {str(z): (z, 0) for z in range(1, 119)}


_ELEMENTS = _elements()


@functools.lru_cache(maxsize=4096)
def _find_element(label: str) -> tuple[int, int] | str:
    """Return atomic number and isotope of a label such as C, c, 6, D, C12 or 13C, or a reason."""
    found = _ELEMENTS.get(label) or _ELEMENTS.get(label.capitalize())
    if found:
        return found
    if match := ISOTOPE.fullmatch(label):
        if match[2] in _ELEMENTS:
            return _ELEMENTS[match[2]][0], int(match[1])
    if match := LABEL.fullmatch(label):
        letters = match[1]
        found = _ELEMENTS.get(letters) or _ELEMENTS.get(letters.capitalize())
        if found and len(letters) > 1 and letters[0] in _ELEMENTS and letters[1] in GREEK:
            return f"may be {letters.capitalize()} or {letters[0]}"
        return found or "is no element"
    if re.fullmatch(r"\d+\.0*", label):
        return _ELEMENTS.get(label.partition(".")[0]) or "is no element"
    return "is no element"


def _element(label: str, line: int) -> tuple[int, int]:
    found = _find_element(label)
    if isinstance(found, str):
        raise MoleculeError(f"cannot be parsed: line {line}: atom {label[:20]!r} {found}")
    return found
