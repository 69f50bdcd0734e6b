"""Databases of the Atomic Simulation Environment in SQLite, such as SchNetPack's: `.db`.

A row holds atomic numbers and positions (A), no bonds; those are perceived. Labels are numbers
among its `data`, its key-value pairs and `energy`; forces are read from its column or from `data`.
Units stand in the metadata of SchNetPack 2 (`_property_unit_dict`); older files do not say them.
ASE's energies and forces are in eV and eV/A. Rows with periodic boundaries are no molecules.

Nothing is unpickled: ASE stores arrays as raw bytes and JSON. The file is opened for reading only.
"""

from __future__ import annotations

import base64
import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.perception import parsed_geometry, perceive
from . import Facts, Label, Options, Parsed, RawMolecule, content, needs, same_for_all, source_name

KEEP_HYDROGENS = True
SAMPLE = 100  # rows that decide which values are labels
MAGIC = b"SQLite format 3\0"
COLUMNS = "id, numbers, positions, pbc, charge, energy, forces, key_value_pairs, data"
NO_LABELS = {"charge", "total_charge", "spin", "id"}


@dataclass(frozen=True)
class Row:
    """One system."""

    numbers: np.ndarray  # (num_atoms,)
    position: np.ndarray  # (num_atoms, 3) A
    forces: np.ndarray | None
    charge: int


def recognises(path: Path) -> bool:
    """Tell by the first bytes and by the table `systems`."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return False
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'systems'"
    try:
        with closing(_open(path)) as database:
            return bool(database.execute(query).fetchone()[0])
    except sqlite3.Error:
        return False


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find the labels, their units and whether there are forces."""
    labels = same_for_all(paths, lambda path: _labels(path, options))
    forces = [_first_forces(path) for path in paths]
    if any(forces) and not all(forces):
        raise MsdeError(f"{paths[forces.index(None)]} has no forces, but other files have")
    unit = _units(paths[0]).get(forces[0] or "") if forces[0] else None
    return Facts(labels=labels, forces_unit=unit if unit or not forces[0] else "")


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each row, known by its id."""
    labels = _labels(path, options)
    source = source_name(path)
    for number, row, values, periodic in _rows(path):
        payload: Row | MoleculeError = row
        y: tuple[float, ...] = ()
        try:
            y = tuple(float(values.get(label.name, np.nan)) for label in labels)
        except (TypeError, ValueError) as error:
            payload = MoleculeError(f"label is not a number: {error}")
        if periodic:
            payload = MoleculeError("periodic")
        yield RawMolecule(source, number, "", payload, y)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Find the bonds."""
    row = content(raw)
    mol = perceive(row.numbers, row.position, row.charge)
    forces = None if row.forces is None else row.forces[None]
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    return parsed_geometry(mol, row.position[None], options, keep_hydrogens, raw.y, forces)


def _rows(path: Path) -> Iterator[tuple[int, Row, dict[str, Any], bool]]:
    """Yield the id, the system, its values by name and whether it is periodic."""
    try:
        with closing(_open(path)) as database:
            for row in database.execute(f"SELECT {COLUMNS} FROM systems ORDER BY id"):
                number, z, place, pbc, charge, energy, forces, pairs, data = row
                values = {**_decode(pairs), **_decode(data)}
                if energy is not None:
                    values["energy"] = energy
                if forces is not None:
                    values["forces"] = np.frombuffer(forces, "<f8")
                numbers = np.frombuffer(z, "<i4")
                position = np.frombuffer(place, "<f8").reshape(-1, 3)
                force = next((values[n] for n in ("forces", "force") if n in values), None)
                if force is not None:
                    force = np.asarray(force, np.float64).reshape(position.shape)
                charge = int(round(values.get("charge", charge or 0)))
                scalars = {k: v.item() if _is_scalar(v) else v for k, v in values.items()}
                yield number, Row(numbers, position, force, charge), scalars, bool(pbc)
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise MsdeError(f"{path} cannot be read as a database of ASE: {error}") from error


def _decode(stored: str | bytes | None) -> dict[str, Any]:
    """Return a dict that ASE stored as JSON or, from its version 9 on, as JSON and raw bytes."""
    if not stored:
        return {}
    if isinstance(stored, bytes):
        values = needs("ase.db.core").bytes_to_object(stored)
    else:
        values = json.loads(stored, object_hook=_array)
    return _schnetpack(values) if isinstance(values, dict) else {}


def _array(values: dict[str, Any]) -> Any:
    if "__ndarray__" in values:
        shape, dtype, flat = values["__ndarray__"]
        return np.array(flat, dtype).reshape(shape)
    return values


def _schnetpack(values: dict[str, Any]) -> dict[str, Any]:
    """Decode the arrays that SchNetPack wrote as base64, with shape and type beside them."""
    decoded = {}
    for name, value in values.items():
        if f"_dtype_{name}" in values:
            array = np.frombuffer(base64.b64decode(value), np.dtype(values[f"_dtype_{name}"]))
            decoded[name] = array.reshape(values[f"_shape_{name}"])
        elif not name.startswith(("_dtype_", "_shape_")):
            decoded[name] = value
    return decoded


def _labels(path: Path, options: Options) -> tuple[Label, ...]:
    sample = [values for _, _, values, _ in itertools.islice(_rows(path), SAMPLE)]
    units = _units(path)
    names = {name: None for values in sample for name in values}
    numeric = [
        name
        for name in names
        if name not in NO_LABELS and all(_is_number(values.get(name)) for values in sample)
    ]
    chosen = options.chosen_labels()
    if chosen is None:
        return tuple(Label(name, units.get(name, "")) for name in numeric)
    absent = [label.name for label in chosen if label.name not in names]
    if absent:
        raise MsdeError(f"{path} has no value {absent[0]!r}, found {', '.join(names) or 'none'}")
    return tuple(Label(label.name, label.unit or units.get(label.name, "")) for label in chosen)


def _first_forces(path: Path) -> str | None:
    """Return the name of the first row's forces; None: it has none."""
    values = next((values for _, _, values, _ in _rows(path)), {})
    return next((name for name in ("forces", "force") if name in values), None)


def _units(path: Path) -> dict[str, str]:
    """Return the units that the metadata give, with those of ASE's own columns."""
    units = {"energy": "eV", "forces": "eV/A"}
    with closing(_open(path)) as database:
        query = "SELECT value FROM information WHERE name = 'metadata'"
        try:
            row = database.execute(query).fetchone()
            metadata = json.loads(row[0]) if row else {}
        except (sqlite3.Error, ValueError):
            metadata = {}
    stored = metadata.get("_property_unit_dict") if isinstance(metadata, dict) else None
    if isinstance(stored, dict):
        units.update({name: str(unit) for name, unit in stored.items()})
    return units


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
