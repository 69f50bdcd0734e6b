"""LMDB files of fairchem (Open Catalyst, OMol25): `.aselmdb` and, older, `.lmdb`.

An `.aselmdb` holds rows of ASE as compressed JSON; a `.lmdb` holds pickled graphs of PyTorch
Geometric (S2EF, IS2RE). Energies are in eV, forces in eV/A. Periodic systems, of which Open
Catalyst is made, are rejected. Bonds are perceived.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.databases import first_record, metadata, peek, records
from ..parsing.labels import all_or_none
from ..parsing.perception import System, parse_system
from ..parsing.pickles import graph_fields, load_pickle
from ..parsing.reader import malformed_as_error

ENERGY = ("energy", "y", "y_relaxed")
FORCES = ("forces", "force")
MAX_ROW = 64 << 20  # bytes of a decompressed row; a larger one is no molecule


class Reader(BaseReader):
    keep_hydrogens = True
    suffixes = (".aselmdb", ".lmdb")

    def recognises(self, path: Path) -> bool:
        """Return whether the name fits and the first pickle has the words; it is not loaded."""
        if not super().recognises(path):
            return False
        return not self.is_pickle(path.name) or b"torch_geometric" in peek(path)

    def is_pickle(self, name: str) -> bool:
        """Return whether a file is no `.aselmdb`: all others are pickles."""
        return not name.lower().endswith(".aselmdb")

    def file_facts(self, path: Path) -> Facts:
        first = first_record(path, functools.partial(_decode, self.is_pickle(path.name)))
        labels = () if _value(first, ENERGY) is None else (Label("energy", "eV"),)
        forces_unit = None if _value(first, FORCES) is None else "eV/A"
        return Facts(all_or_none(path, labels, self.options), forces_unit)

    def scan(self, path: Path) -> Iterator[Scanned]:
        is_pickle = self.is_pickle(path.name)
        is_labelled = bool(self.file_facts(path).labels)
        deleted = None if is_pickle else metadata(path, b"deleted_ids")
        gone = set(_row(deleted)) if deleted else set()
        for number, value in records(path):
            if number not in gone:
                line = number + int(is_pickle)  # the rows of ASE count from 1
                yield line, "", (value, is_labelled), ()

    def build(self, raw: RawMolecule) -> Parsed:
        value, is_labelled = raw.payload
        is_pickle = self.is_pickle(raw.source)
        fields = _decode(is_pickle, value)
        if _is_periodic(fields, is_pickle):
            raise MoleculeError("periodic")
        with malformed_as_error():
            numbers = _array(_value(fields, ("numbers", "atomic_numbers", "z"))).reshape(-1)
            position = _array(_value(fields, ("positions", "pos"))).reshape(len(numbers), 3)
            forces, energy = _value(fields, FORCES), _value(fields, ENERGY)
            if forces is not None:
                forces = _array(forces).reshape(len(numbers), 3)
            y = np.nan if energy is None else float(_array(energy).reshape(()))
            system = System(numbers.astype(np.int64), position, forces, _charge(fields))
        return parse_system(system, self.options, (y,) if is_labelled else ())


def _decode(is_pickle: bool, value: bytes) -> dict[str, Any]:
    """Return the fields of one record."""
    return graph_fields(load_pickle(value)) if is_pickle else _row(value)


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


def _is_periodic(fields: dict[str, Any], is_graph: bool) -> bool:
    """Return whether a system is periodic: by `pbc` or, of graphs without it, by their cell."""
    if fields.get("pbc") is not None:
        return bool(np.any(_array(fields["pbc"])))
    cell = fields.get("cell")
    return is_graph and cell is not None and bool(np.any(_array(cell)))


def _charge(fields: dict[str, Any]) -> int:
    data = fields.get("data")
    stored = data.get("charge") if isinstance(data, dict) else None
    stored = fields.get("charge", 0) if stored is None else stored
    return int(round(float(_array(stored).reshape(()))))


def _value(fields: dict[str, Any], names: Sequence[str]) -> Any:
    """Return the first of the fields that there is, or None."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _array(value: Any) -> np.ndarray:
    if value is None:
        raise MoleculeError("atomic numbers or positions are missing")
    if isinstance(value, dict):
        shape, dtype, flat = value["__ndarray__"]
        return np.array(flat, np.dtype(dtype)).reshape(shape)
    return np.asarray(value)
