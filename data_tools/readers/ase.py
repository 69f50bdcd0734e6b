"""Databases of the Atomic Simulation Environment in SQLite, such as SchNetPack's: `.db`.

A row holds atomic numbers and positions, no bonds; those are perceived. Labels are numbers among
its `data`, its key-value pairs and `energy`; forces stand in its column or in `data`, under any
name of `parsing.quantities`. Units stand in the metadata of SchNetPack 2: `_distance_unit`, from
which positions are converted to A, and `_property_unit_dict`. Older files do not state them. ASE's
own columns are in eV and eV/A. Rows with periodic boundaries are rejected.

Nothing is unpickled: ASE stores arrays as raw bytes and JSON. The file is opened for reading only.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.units import factor, parse
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import GEOMETRY
from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned, attempt
from ..parsing.files import import_optional
from ..parsing.labels import (
    choose_labels,
    conversions,
    left_out,
    scale,
    units_of,
    value_of,
    why_no_labels,
    with_units,
)
from ..parsing.perception import System, parse_system
from ..parsing.quantities import CHARGE, Quantities, charge_of, choose_quantities
from ..parsing.reader import malformed_as_error

SAMPLE = 100  # rows that decide which values are labels
MAGIC = b"SQLite format 3\0"
COLUMNS = "id, numbers, positions, pbc, charge, energy, forces, key_value_pairs, data"
OWN_UNITS = {"energy": "eV", "forces": "eV/A"}  # of ASE's columns
SETTINGS = ("spin", "multiplicity", "id")
NEAR = 0.01  # by which the sum of initial charges may miss a whole number
NO_UNIT = ("", "none", "unitless", "dimensionless")


@dataclass(frozen=True)
class Row:
    """One system as it is stored."""

    numbers: np.ndarray  # (num_atoms,)
    position: np.ndarray  # (num_atoms, 3), in the unit of the file
    charge: float | None
    is_periodic: bool
    values: dict[str, Any]
    own: frozenset[str]  # which values stand in ASE's columns

    def is_vector(self, name: str) -> bool:
        """Return whether a value, if it is there, holds three numbers for each atom."""
        return name not in self.values or np.shape(self.values[name]) == self.position.shape


@dataclass(frozen=True)
class Fields:
    """What is read of the rows of a file."""

    labels: tuple[Label, ...]
    factors: tuple[float, ...]
    quantities: Quantities
    length: float  # of the unit of positions, in A


class Reader(BaseReader):
    keep_hydrogens = True
    follows = GEOMETRY

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

    def count(self, path: Path) -> int | None:
        try:
            with closing(_open(path)) as database:
                return database.execute("SELECT count(*) FROM systems").fetchone()[0]
        except sqlite3.Error:  # `scan` names it
            return None

    def scan(self, path: Path) -> Iterator[Scanned]:
        fields = self.survey(path)[1]
        for number, row in _rows(path):
            yield number, "", *attempt(self._system_and_labels, row, fields)

    def build(self, raw: RawMolecule) -> Parsed:
        system, notes = raw.payload
        return parse_system(system, self.options, raw.y, notes)

    def _system_and_labels(
        self, row: Row | MoleculeError, fields: Fields
    ) -> tuple[tuple[System, tuple[str, ...]], tuple[float, ...]]:
        if isinstance(row, MoleculeError):
            raise row
        if row.is_periodic:
            raise MoleculeError("periodic")
        y = []
        for label in fields.labels:
            try:
                y.append(value_of(row.values.get(label.name)))
            except (TypeError, ValueError) as error:
                raise MoleculeError(f"label is not a number: {label.name}: {error}") from error
        found, sign = fields.quantities.forces, fields.quantities.sign
        forces = row.values.get(found) if found else None
        with malformed_as_error():
            if forces is not None:
                forces = sign * np.asarray(forces, np.float64).reshape(row.position.shape)
            charge, ignored = _charge(row, self.options.charge or 0)
        position = row.position * fields.length if fields.length != 1 else row.position
        system = System(row.numbers, position, forces, charge)
        notes = (*fields.quantities.lacking(forces), *ignored)
        return (system, notes), scale(tuple(y), fields.factors)

    def survey(self, path: Path) -> tuple[Facts, Fields]:
        """Return what the first rows and the metadata show of a file."""
        sample = [row for _, row in itertools.islice(_rows(path), SAMPLE) if isinstance(row, Row)]
        distance, units = _units(path, sample)
        reasons = why_no_labels([row.values for row in sample])
        vectors = []
        for name in reasons:
            if all(row.is_vector(name) for row in sample):
                vectors.append(name)
                reasons[name] = "three numbers for each atom"
            elif name.lower() in CHARGE + SETTINGS:
                reasons[name] = "a setting, not a property"

        labels = choose_labels(path, self.options, reasons, lambda name: not reasons[name])
        known = {name: unit for name, unit in units.items() if parse(unit) is not None}
        labels, factors = with_units(path, labels, known)
        numbers = [name for name, reason in reasons.items() if not reason]
        found = choose_quantities(path, self.options, numbers, vectors)
        stated = units_of(labels)
        for name in [*stated, *([found.forces] if found.forces else [])]:
            if units.get(name) and name not in known and not stated.get(name):
                raise MsdeError(
                    f"{path}: the unit of {name}, {units[name]!r}, is not known; "
                    f"say it with --label-columns {name}=UNIT, or choose other labels"
                )
        forces_unit = None
        if found.forces is not None:
            energy = "" if found.energy in units else stated.get(found.energy or "", "")
            forces_unit = units.get(found.forces) or (f"{energy}/{distance}" if energy else "")
        size = factor(distance, "A")
        moved = (f"positions are converted from {distance} to A",) if size != 1 else ()
        facts = Facts(
            labels,
            forces_unit,
            (*moved, *found.notes(), *conversions(labels, known)),
            (*found.taken(labels), *(("charge", name) for name in reasons if name in CHARGE)),
            tuple(left_out(reasons, {*stated, found.forces, *CHARGE})),
        )
        return facts, Fields(labels, factors, found, size)


def _rows(path: Path) -> Iterator[tuple[int, Row | MoleculeError]]:
    """Yield the id of each row and the row, or why it cannot be decoded."""
    try:
        with closing(_open(path)) as database:
            for row in database.execute(f"SELECT {COLUMNS} FROM systems ORDER BY id"):
                try:
                    yield row[0], _row(*row[1:])
                except MoleculeError as error:
                    yield row[0], error
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise MsdeError(f"{path} cannot be read as a database of ASE: {reason}") from error


def _row(z: bytes, place: bytes, pbc: int, charge: float, *rest: Any) -> Row:
    energy, forces, pairs, data = rest
    with malformed_as_error():
        values = {**_decode(pairs), **_decode(data)}
        own = {}
        if energy is not None:
            own["energy"] = energy
        if forces is not None:
            own["forces"] = np.frombuffer(forces, "<f8").reshape(-1, 3)
        values |= own
        scalars = {k: v.item() if _is_scalar(v) else v for k, v in values.items()}
        numbers, position = np.frombuffer(z, "<i4"), np.frombuffer(place, "<f8").reshape(-1, 3)
        if len(numbers) != len(position):
            raise MoleculeError(f"{len(numbers)} atoms with {len(position)} positions")
        return Row(numbers, position, charge, bool(pbc), scalars, frozenset(own))


def _decode(stored: str | bytes | None) -> dict[str, Any]:
    """Return a dict that ASE stored as JSON or, from its version 9 on, as JSON and raw bytes."""
    if not stored:
        return {}
    if isinstance(stored, bytes):
        values = import_optional("ase.db.core").bytes_to_object(stored)
    else:
        values = json.loads(stored, object_hook=stored_array)
    return _schnetpack(values) if isinstance(values, dict) else {}


def stored_array(values: dict[str, Any]) -> Any:
    """Return the array that ASE stored as a JSON object, or another object as it is."""
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


def _units(path: Path, sample: Sequence[Row]) -> tuple[str, dict[str, str]]:
    """Return the unit of positions and those of values by name.

    Raises:
        MsdeError: the unit of positions is not known.
    """
    with closing(_open(path)) as database:
        query = "SELECT value FROM information WHERE name = 'metadata'"
        try:
            row = database.execute(query).fetchone()
            metadata = json.loads(row[0]) if row else {}
        except (sqlite3.Error, ValueError, TypeError):
            metadata = {}
    if not isinstance(metadata, dict):
        metadata = {}
    distance = str(metadata.get("_distance_unit") or "A")
    if factor(distance, "A") is None:
        raise MsdeError(f"{path}: positions are in {distance!r}, expected Angstrom or Bohr")
    units = {name: OWN_UNITS[name] for row in sample for name in row.own}
    stored = metadata.get("_property_unit_dict")
    if isinstance(stored, dict):
        units |= {name: str(unit) for name, unit in stored.items()}
    return distance, {k: "" if unit.lower() in NO_UNIT else unit for k, unit in units.items()}


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    database.text_factory = lambda text: text.decode("utf-8", "replace")
    return database


def _charge(row: Row, otherwise: int) -> tuple[int, tuple[str, ...]]:
    """Return the charge of a row, and a note where the sum of initial charges is ignored.

    ASE's column is that sum, which may be that of partial charges of another method.

    Raises:
        MoleculeError: the charge among the row's values is no whole number.
    """
    named = {k: v for k, v in row.values.items() if k.lower() in CHARGE and v is not None}
    total = row.charge or 0.0
    if named or not total:
        return charge_of(named, otherwise), ()
    if math.isfinite(total) and abs(total - round(total)) < NEAR:
        return round(total) or otherwise, ()
    return otherwise, (f"initial charges, whose sum is no whole number, are ignored: {total:g}",)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1
