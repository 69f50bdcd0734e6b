"""Databases of the Atomic Simulation Environment in SQLite, such as SchNetPack's: `.db`.

A row holds atomic numbers and positions (A), no bonds; those are perceived. Labels are numbers
among its `data`, its key-value pairs and `energy`; forces are read from its column or from `data`.
Units stand in the metadata of SchNetPack 2 (`_property_unit_dict`); older files do not state them.
ASE's energies and forces are in eV and eV/A. Rows with periodic boundaries are rejected.

Nothing is unpickled: ASE stores arrays as raw bytes and JSON. The file is opened for reading only.
"""

from __future__ import annotations

import base64
import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned, attempt
from ..parsing.files import import_optional
from ..parsing.labels import choose_labels, with_units
from ..parsing.perception import System, parse_system

SAMPLE = 100  # rows that decide which values are labels
MAGIC = b"SQLite format 3\0"
COLUMNS = "id, numbers, positions, pbc, charge, energy, forces, key_value_pairs, data"
NO_LABELS = {"charge", "total_charge", "spin", "id"}
FORCES = ("forces", "force")


class Reader(BaseReader):
    keep_hydrogens = True

    def recognises(self, path: Path) -> bool:
        """Return whether the first bytes are SQLite's and there is a table `systems`."""
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return False
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'systems'"
        try:
            with closing(_open(path)) as database:
                return bool(database.execute(query).fetchone()[0])
        except sqlite3.Error:
            return False

    def file_facts(self, path: Path) -> Facts:
        sample = [values for _, _, values, _ in itertools.islice(_rows(path), SAMPLE)]
        names = dict.fromkeys(name for values in sample for name in values)
        units = _units(path)

        def is_label(name: str) -> bool:
            return name not in NO_LABELS and all(_is_number(v.get(name)) for v in sample)

        labels = with_units(choose_labels(path, self.options, names, is_label), units)
        forces = next((n for n in FORCES if sample and n in sample[0]), None)
        return Facts(labels, forces and units.get(forces, ""))

    def scan(self, path: Path) -> Iterator[Scanned]:
        labels = self.file_facts(path).labels
        for number, *row in _rows(path):
            yield number, "", *attempt(_system_and_labels, *row, labels)

    def build(self, raw: RawMolecule) -> Parsed:
        return parse_system(raw.payload, self.options, raw.y)


def _system_and_labels(
    system: System, values: dict[str, Any], is_periodic: bool, labels: tuple[Label, ...]
) -> tuple[System, tuple[float, ...]]:
    if is_periodic:
        raise MoleculeError("periodic")
    try:
        return system, tuple(float(values.get(label.name, np.nan)) for label in labels)
    except (TypeError, ValueError) as error:
        raise MoleculeError(f"label is not a number: {error}") from error


def _rows(path: Path) -> Iterator[tuple[int, System, dict[str, Any], bool]]:
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
                position = np.frombuffer(place, "<f8").reshape(-1, 3)
                force = next((values[n] for n in FORCES if n in values), None)
                if force is not None:
                    force = np.asarray(force, np.float64).reshape(position.shape)
                charge = int(round(values.get("charge", charge or 0)))
                system = System(np.frombuffer(z, "<i4"), position, force, charge)
                scalars = {k: v.item() if _is_scalar(v) else v for k, v in values.items()}
                yield number, system, scalars, bool(pbc)
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise MsdeError(f"{path} cannot be read as a database of ASE: {error}") from error


def _decode(stored: str | bytes | None) -> dict[str, Any]:
    """Return a dict that ASE stored as JSON or, from its version 9 on, as JSON and raw bytes."""
    if not stored:
        return {}
    if isinstance(stored, bytes):
        values = import_optional("ase.db.core").bytes_to_object(stored)
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


def _units(path: Path) -> dict[str, str]:
    """Return the units in the metadata, with those of ASE's own columns."""
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
