"""XYZ files, plain and extended, `.xyz` and `.extxyz`: each frame is a molecule.

The first line is the number of atoms, the second a comment; an atom is its symbol (or number) and
three coordinates in A. In an extended file the comment holds `key=value` pairs: `Properties` names
the columns, numbers become labels (those that all of the first 100 frames have), `charge` is used,
and frames with `pbc`, or with `Lattice` unless `pbc` is false, are rejected as periodic. XYZ files
state no units; give one as `energy=kcal/mol` in `options.label_columns`. Forces are then in it
per A.

Bonds are perceived.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.files import open_text
from ..parsing.labels import choose_labels, is_number, labels_from
from ..parsing.perception import System, parse_system
from ..parsing.reader import malformed_as_error

SAMPLE = 100  # frames that decide which keys are labels
PAIR = re.compile(r"""([\w:.-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|[^\s"']+)""")
PLAIN = "species:S:1:pos:R:3"
NO_LABELS = {"charge", "total_charge", "spin", "multiplicity", "pbc", "frame", "step", "id"}
FORCES = ("forces", "force")


@dataclass(frozen=True)
class Frame:
    """The text of one frame."""

    comment: str
    atoms: tuple[str, ...]
    labels: tuple[Label, ...]


class Reader(BaseReader):
    keep_hydrogens = True
    suffixes = (".xyz", ".extxyz")

    def recognises(self, path: Path) -> bool:
        """Return whether the suffix fits and the first line is a number."""
        if not super().recognises(path):
            return False
        with open_text(path) as file:
            return file.readline().strip().isdigit()

    def file_facts(self, path: Path) -> Facts:
        infos = [_info(comment) for _, comment, _ in itertools.islice(_frames(path), SAMPLE)]
        names = dict.fromkeys(name for info in infos for name in info)

        def is_label(name: str) -> bool:
            is_known = all(info.get(name) and is_number(info[name]) for info in infos)
            return name.lower() not in NO_LABELS and is_known

        labels = choose_labels(path, self.options, names, is_label, "value in its comments named")
        if not infos or _forces_column(_columns(infos[0])) is None:
            return Facts(labels)
        units = {label.name: label.unit for label in labels}
        return Facts(labels, f"{units['energy']}/A" if units.get("energy") else "")

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each frame; its line is where it begins."""
        labels = self.file_facts(path).labels
        for line, comment, atoms in _frames(path):
            yield line, "", Frame(comment, atoms, labels), ()

    def build(self, raw: RawMolecule) -> Parsed:
        frame = raw.payload
        info = _info(frame.comment)
        if _is_periodic(info):
            raise MoleculeError("periodic")
        y = labels_from([info.get(label.name, "") for label in frame.labels], frame.labels)
        columns = _columns(info)
        cells = [line.split() for line in frame.atoms]
        with malformed_as_error():
            numbers = np.array([_atomic_number(row[columns["species"].start]) for row in cells])
            position = _array(cells, columns["pos"])
            name = _forces_column(columns)
            forces = _array(cells, columns[name]) if name else None
            charge = int(float(info.get("charge", info.get("total_charge", "0"))))
        system = System(numbers, position, forces, charge)
        return parse_system(system, self.options, y)


def _frames(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield the first line, the comment and the lines of the atoms of each frame."""
    with open_text(path) as file:
        line = 1
        for first in file:
            if not first.strip():
                line += 1
                continue
            if not first.strip().isdigit():
                raise MsdeError(
                    f"{path}: line {line} is {first.strip()[:40]!r}, expected a number of atoms"
                )
            count = int(first)
            comment = file.readline()
            atoms = tuple(itertools.islice(file, count))
            if len(atoms) < count:
                raise MsdeError(f"{path}: the frame that begins in line {line} is cut off")
            yield line, comment.strip(), atoms
            line += count + 2


def _info(comment: str) -> dict[str, str]:
    return {key: value.strip("\"'{}[]").strip() for key, value in PAIR.findall(comment)}


def _is_periodic(info: dict[str, str]) -> bool:
    """Return whether a frame is periodic; one with a lattice is, unless `pbc` is false."""
    pbc = info.get("pbc")
    if pbc is None:
        return "Lattice" in info
    return any(word.strip(",").lower() in {"t", "true", "1"} for word in pbc.split())


def _forces_column(columns: dict[str, slice]) -> str | None:
    return next((name for name in FORCES if name in columns), None)


def _columns(info: dict[str, str]) -> dict[str, slice]:
    """Return which cells of a line hold which property."""
    parts = info.get("Properties", PLAIN).split(":")
    columns, start = {}, 0
    for name, width in zip(parts[::3], parts[2::3], strict=False):
        if not width.isdigit():
            return {}
        columns[name] = slice(start, start + int(width))
        start += int(width)
    return columns


def _array(cells: list[list[str]], columns: slice) -> np.ndarray:
    return np.array([row[columns] for row in cells], np.float64).reshape(len(cells), 3)


def _atomic_number(symbol: str) -> int:
    if symbol.isdigit():
        return int(symbol)
    return Chem.GetPeriodicTable().GetAtomicNumber(symbol.capitalize())
