"""LMDB files of fairchem (Open Catalyst, OMol25): `.aselmdb` and, older, `.lmdb`.

An `.aselmdb` holds rows of ASE as compressed JSON; a `.lmdb` holds pickled graphs of PyTorch
Geometric (S2EF, IS2RE). `energy` is in eV, and forces are in eV/A; both may have other names
(`parsing.quantities`), of which the unit is not known. Other numbers of a record can be chosen as
labels. Periodic systems, of which Open Catalyst is made, are rejected. Bonds are perceived.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import GEOMETRY
from ..parsing import BaseReader, Facts, Parsed, RawMolecule, Scanned
from ..parsing.databases import count_records, first_records, metadata, peek, records
from ..parsing.files import source_name
from ..parsing.labels import (
    choose_labels,
    conversions,
    left_out,
    scale,
    value_of,
    why_no_labels,
    with_units,
)
from ..parsing.perception import System, parse_system
from ..parsing.pickles import graph_fields, load_pickle
from ..parsing.quantities import CHARGE, Quantities, charge_of, choose_quantities, is_energy
from ..parsing.reader import malformed_as_error
from .ase import stored_array

SAMPLE = 100  # records that decide which fields are read
ENERGY = ("energy", "y", "y_relaxed")  # the label of all is "energy"
FORCES = ("forces", "force")
NUMBERS = ("numbers", "atomic_numbers", "z")
POSITIONS = ("positions", "pos")
MAX_ROW = 64 << 20  # bytes of a decompressed row; a larger one is no molecule


@dataclass(frozen=True)
class Fields:
    """What is read of the records of a file."""

    names: tuple[str, ...]  # of the labels
    factors: tuple[float, ...]
    quantities: Quantities


class Reader(BaseReader):
    keep_hydrogens = True
    follows = GEOMETRY
    suffixes = (".aselmdb", ".lmdb")

    def recognises(self, path: Path) -> bool:
        """Return whether the name fits and the first pickle has the words; it is not loaded."""
        if not super().recognises(path):
            return False
        return not self.is_pickle(source_name(path)) or b"torch_geometric" in peek(path)

    def is_pickle(self, name: str) -> bool:
        """Return whether a file is no `.aselmdb`: all others are pickles."""
        return not name.lower().endswith(".aselmdb")

    def pickled(self, path: Path) -> bytes:
        return next(records(path), (0, b""))[1]

    def count(self, path: Path) -> int:
        return count_records(path) - len(self._gone(path))

    def scan(self, path: Path) -> Iterator[Scanned]:
        is_pickle = self.is_pickle(source_name(path))
        fields, gone = self.survey(path)[1], self._gone(path)
        for number, value in records(path):
            if number not in gone:
                line = number + int(is_pickle)  # the rows of ASE count from 1
                yield line, "", (value, fields), ()

    def _gone(self, path: Path) -> set[int]:
        deleted = None if self.is_pickle(source_name(path)) else metadata(path, b"deleted_ids")
        return _deleted(path, deleted) if deleted else set()

    def build(self, raw: RawMolecule) -> Parsed:
        value, fields = raw.payload
        is_pickle = self.is_pickle(raw.source)
        values = _decode(is_pickle, value)
        if _is_periodic(values, is_pickle):
            raise MoleculeError("periodic")
        with malformed_as_error():
            numbers = _required(values, NUMBERS, "atomic numbers").reshape(-1)
            position = _required(values, POSITIONS, "positions").reshape(len(numbers), 3)
            forces = values.get(fields.quantities.forces or "")
            if forces is not None:
                forces = fields.quantities.sign * np.asarray(forces).reshape(len(numbers), 3)
            y = tuple(value_of(values.get(name)) for name in fields.names)
            charge = charge_of(values, self.options.charge or 0)
            system = System(numbers.astype(np.int64), position, forces, charge)
        notes = fields.quantities.lacking(forces)
        return parse_system(system, self.options, scale(y, fields.factors), notes)

    def survey(self, path: Path) -> tuple[Facts, Fields]:
        """Return what the first records show of a file."""
        sample = first_records(
            path, functools.partial(_decode, self.is_pickle(source_name(path))), SAMPLE
        )
        reasons = why_no_labels(sample)
        vectors = [name for name in reasons if _is_vector(sample, name)]
        numbers = [name for name, reason in reasons.items() if not reason]
        found = choose_quantities(path, self.options, numbers, vectors)
        field = next((name for name in ENERGY if name in numbers), "energy")
        if found.energy is None and field in numbers:
            found = replace(found, energy=field)
        shown = {field: "energy"}  # the label
        scalars = {shown.get(name, name): name for name in numbers}
        renamed = [f"{name} is the label energy" for name in numbers if field == name != "energy"]

        def is_label(name: str) -> bool:
            return name == "energy" or is_energy(name)

        labels = choose_labels(path, self.options, scalars, is_label)
        known = {"energy": "eV"}
        labels, factors = with_units(path, labels, known)
        forces_unit = None if found.forces is None else "eV/A" if found.forces in FORCES else ""
        names = tuple(scalars.get(label.name, label.name) for label in labels)
        charge = tuple(("charge", name) for name in reasons if name in CHARGE)
        read = {*names, found.forces, *CHARGE, *NUMBERS, *POSITIONS, "pbc", "cell"}
        left = {name: why or "a number, read if it is chosen" for name, why in reasons.items()}
        facts = Facts(
            labels,
            forces_unit,
            (*renamed, *found.notes(), *conversions(labels, known)),
            replace(found, energy=shown.get(found.energy, found.energy)).taken(labels) + charge,
            tuple(left_out(left, read)),
        )
        return facts, Fields(names, factors, found)


def _decode(is_pickle: bool, value: bytes) -> dict[str, Any]:
    """Return the fields of one record; those of a row's `data` are among them."""
    if is_pickle:
        fields = graph_fields(load_pickle(value))
    else:
        row = _row(value)
        if not isinstance(row, dict):
            raise MoleculeError(f"is a {type(row).__name__}, expected a row of ASE")
        parts = (row.pop(name, None) for name in ("key_value_pairs", "data"))
        pairs, data = (part if isinstance(part, dict) else {} for part in parts)
        charge = {"charge": data["charge"]} if "charge" in data else {}
        fields = pairs | data | row | charge
    return {str(name): _plain(value) for name, value in fields.items()}


def _row(value: bytes) -> Any:
    """Return a row of ASE: JSON, compressed."""
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(value, MAX_ROW)
    except zlib.error as error:
        raise MoleculeError(f"cannot be parsed: {error}") from error
    if decompressor.unconsumed_tail:
        raise MoleculeError("a row of more than 64 MB")
    with malformed_as_error():
        return json.loads(text)


def _deleted(path: Path, stored: bytes) -> set[int]:
    try:
        return set(_row(stored))
    except (MoleculeError, TypeError) as error:
        raise MsdeError(f"{path}: its list of deleted rows {error}") from error


def _is_periodic(fields: dict[str, Any], is_graph: bool) -> bool:
    """Return whether a system is periodic: by `pbc` or, of graphs without it, by their cell."""
    if fields.get("pbc") is not None:
        return bool(np.any(np.asarray(fields["pbc"])))
    cell = fields.get("cell")
    return is_graph and cell is not None and bool(np.any(np.asarray(cell)))


def _required(fields: dict[str, Any], names: Sequence[str], what: str) -> np.ndarray:
    """Return the first of the fields that there is."""
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if value is None:
        raise MoleculeError(f"the record has no {what} ({' or '.join(names)})")
    return np.asarray(value)


def _plain(value: Any) -> Any:
    """Return a number for an array of one, and NumPy's array for others."""
    try:
        if isinstance(value, dict):
            value = stored_array(value)
        elif hasattr(value, "numpy"):
            value = value.numpy()
        elif isinstance(value, (list, tuple)):
            value = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a field that is not read may be anything
        return value
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _is_vector(sample: list[dict[str, Any]], name: str) -> bool:
    """Return whether a field holds three numbers for each atom wherever it is there."""
    pairs = [
        (np.shape(fields[name]), np.shape(fields[place]))
        for fields in sample
        for place in POSITIONS
        if fields.get(name) is not None and fields.get(place) is not None
    ]
    return name not in POSITIONS and bool(pairs) and all(a == b for a, b in pairs)
