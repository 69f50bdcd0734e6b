"""XYZ files, plain and extended, `.xyz` and `.extxyz`: each frame is a molecule.

The first line is the number of atoms, the second a comment; an atom is its symbol (or number) and
three coordinates in A. In an extended file the comment holds `key=value` pairs: `Properties` says
what the columns are, numbers become labels (those that all of the first 100 frames have), `charge`
is used, and `pbc` or `Lattice` with periodic boundaries makes a frame no molecule. XYZ files do not
say units; give one as `energy=kcal/mol` in `options.label_columns`. Forces are then in it per A.

Bonds are perceived.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.perception import parsed_geometry, perceive
from ..parsing.tables import is_number, labels_from
from . import (
    Facts,
    Label,
    Options,
    Parsed,
    RawMolecule,
    content,
    open_text,
    same_for_all,
    source_name,
)

KEEP_HYDROGENS = True
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


def recognises(path: Path) -> bool:
    """Tell by the name and the first line, a number."""
    if not source_name(path).lower().endswith((".xyz", ".extxyz")):
        return False
    with open_text(path) as file:
        return file.readline().strip().isdigit()


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find the labels and whether there are forces; all files have to have the same."""
    labels = same_for_all(paths, lambda path: _labels(path, options))
    forces = [_has_forces(next((c for _, c, _ in _frames(path)), "")) for path in paths]
    if any(forces) and not all(forces):
        raise MsdeError(f"{paths[forces.index(False)]} has no forces, but other files have")
    energy = next((label.unit for label in labels if label.name == "energy" and label.unit), None)
    unit = (f"{energy}/A" if energy else "") if all(forces) else None
    return Facts(labels=labels, forces_unit=unit)


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each frame; its line is where it begins."""
    labels = _labels(path, options)
    source = source_name(path)
    for line, comment, atoms in _frames(path):
        yield RawMolecule(source, line, "", Frame(comment, atoms, labels))


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Read atoms and forces, and find the bonds."""
    frame = content(raw)
    info = _info(frame.comment)
    if _periodic(info):
        raise MoleculeError("periodic")
    y = labels_from([info.get(label.name, "") for label in frame.labels], frame.labels)
    columns = _columns(info.get("Properties", PLAIN))
    cells = [line.split() for line in frame.atoms]
    try:
        numbers = np.array([_atomic_number(row[columns["species"].start]) for row in cells])
        position = _array(cells, columns["pos"])
        name = next((name for name in FORCES if name in columns), None)
        forces = _array(cells, columns[name])[None] if name else None
        charge = int(float(info.get("charge", info.get("total_charge", "0"))))
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise MoleculeError(f"cannot be parsed: {error}") from error
    mol = perceive(numbers, position, charge)
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    return parsed_geometry(mol, position[None], options, keep_hydrogens, y, forces)


def _frames(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
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


def _labels(path: Path, options: Options) -> tuple[Label, ...]:
    frames = list(itertools.islice(_frames(path), SAMPLE))
    infos = [_info(comment) for _, comment, _ in frames]
    chosen = options.chosen_labels()
    if chosen is not None:
        absent = [label.name for label in chosen if not any(label.name in i for i in infos)]
        if absent:
            found = ", ".join(sorted(set().union(*infos))) or "none"
            raise MsdeError(f"{path} has no value {absent[0]!r} in its comments, found {found}")
        return chosen
    names = infos[0] if infos else {}
    return tuple(
        Label(name)
        for name in names
        if name.lower() not in NO_LABELS
        and all(info.get(name) and is_number(info[name]) for info in infos)
    )


def _info(comment: str) -> dict[str, str]:
    return {key: value.strip("\"'{}[]").strip() for key, value in PAIR.findall(comment)}


def _periodic(info: dict[str, str]) -> bool:
    """Tell whether a frame repeats itself; a lattice does unless `pbc` says no."""
    pbc = info.get("pbc")
    if pbc is None:
        return "Lattice" in info
    return any(word.strip(",").lower() in {"t", "true", "1"} for word in pbc.split())


def _has_forces(comment: str) -> bool:
    columns = _columns(_info(comment).get("Properties", PLAIN))
    return any(name in columns for name in FORCES)


def _columns(properties: str) -> dict[str, slice]:
    """Return which cells of a line hold which property."""
    parts = properties.split(":")
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
