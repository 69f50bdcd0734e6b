"""LMDB files of fairchem (Open Catalyst, OMol25): `.aselmdb` and, older, `.lmdb`.

An `.aselmdb` holds rows of ASE as compressed JSON; a `.lmdb` holds pickled graphs of PyTorch
Geometric (S2EF, IS2RE) and is loaded if it is trusted. Energies are in eV, forces in eV/A. Periodic
systems, of which Open Catalyst is made, are refused. Bonds are perceived.
"""

from __future__ import annotations

import json
import pickle
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.databases import first_value, metadata, peek, records
from ..parsing.perception import parsed_geometry, perceive
from . import (
    Facts,
    Label,
    Options,
    Parsed,
    RawMolecule,
    check_trusted,
    content,
    same_for_all,
    source_name,
)

KEEP_HYDROGENS = True
ENERGY = ("energy", "y", "y_relaxed")
FORCES = ("forces", "force")
MAX_ROW = 64 << 20  # bytes; one that unfolds to more is no molecule


def recognises(path: Path) -> bool:
    """Tell by the name, and of `.lmdb` by the words in the first pickle, which is not loaded."""
    if not pickled(path):
        return True
    return path.suffix.lower() == ".lmdb" and b"torch_geometric" in peek(path)


def pickled(path: Path) -> bool:
    """Say that all files but `.aselmdb` are pickles."""
    return path.suffix.lower() != ".aselmdb"


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Return the energy, if the first record has it, and the unit of forces."""
    check_trusted(sys.modules[__name__], paths, options)
    labels = same_for_all(paths, lambda path: _labels(path, options))
    forces = {_value(_first(path), FORCES) is not None for path in paths}
    if len(forces) > 1:
        raise MsdeError("some of the files have forces and others have not")
    return Facts(labels=labels, forces_unit="eV/A" if forces == {True} else None)


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each record as it is stored."""
    check_trusted(sys.modules[__name__], [path], options)
    labelled = bool(_labels(path, options))
    deleted = metadata(path, b"deleted_ids") if not pickled(path) else None
    gone = set(_row(deleted)) if deleted else set()
    for number, value in records(path):
        if number not in gone:
            line = number if not pickled(path) else number + 1
            yield RawMolecule(source_name(path), line, "", (value, labelled, path))


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Decode the record and find the bonds."""
    value, labelled, path = content(raw)
    check_trusted(sys.modules[__name__], [path], options)
    fields = _decode(value, path)
    if _periodic(fields, pickled(path)):
        raise MoleculeError("periodic")
    try:
        numbers = _array(_value(fields, ("numbers", "atomic_numbers", "z"))).reshape(-1)
        position = _array(_value(fields, ("positions", "pos"))).reshape(len(numbers), 3)
        found = _value(fields, FORCES)
        forces = None if found is None else _array(found).reshape(1, len(numbers), 3)
        energy = _value(fields, ENERGY)
        y = (np.nan if energy is None else float(_array(energy).reshape(())),) if labelled else ()
        charge = _charge(fields)
    except (KeyError, ValueError, TypeError) as error:
        raise MoleculeError(f"cannot be parsed: {error}") from error
    mol = perceive(numbers.astype(np.int64), position, charge)
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    return parsed_geometry(mol, position[None], options, keep_hydrogens, y, forces)


def _decode(value: bytes, path: Path) -> dict[str, Any]:
    """Return the fields of one record; callers have made sure that a pickle is trusted."""
    if not pickled(path):
        return _row(value)
    try:
        data = pickle.loads(value)
    except Exception as error:  # a pickle can raise anything
        raise MoleculeError(f"cannot be unpickled: {type(error).__name__}") from error
    return graph_fields(data)


def graph_fields(data: Any) -> dict[str, Any]:
    """Return the fields of a graph of PyTorch Geometric, of whatever version, or of a dict."""
    if isinstance(data, dict):
        return data
    # What old versions pickled keeps its fields in the object, and lacks methods of newer ones.
    fields = getattr(data, "__dict__", None)
    if fields is None:
        raise MoleculeError(f"is a {type(data).__name__}, expected a graph")
    return dict(fields["_store"]._mapping) if "_store" in fields else dict(fields)


def _row(value: bytes) -> Any:
    """Return a row of ASE: JSON, compressed."""
    unfold = zlib.decompressobj()
    try:
        text = unfold.decompress(value, MAX_ROW)
        if unfold.unconsumed_tail:
            raise MoleculeError("a row that unfolds to more than 64 MB")
        return json.loads(text)
    except (zlib.error, ValueError) as error:
        if isinstance(error, MoleculeError):
            raise
        raise MoleculeError(f"cannot be parsed: {error}") from error


def _periodic(fields: dict[str, Any], graph: bool) -> bool:
    """Tell whether a system repeats itself: by `pbc` or, of graphs without it, by their cell."""
    if fields.get("pbc") is not None:
        return bool(np.any(_array(fields["pbc"])))
    cell = fields.get("cell")
    return graph and cell is not None and bool(np.any(_array(cell)))


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


def _first(path: Path) -> dict[str, Any]:
    value = first_value(path)
    try:
        return _decode(value, path) if value else {}
    except MoleculeError as error:
        raise MsdeError(f"{path}: its first record {error}") from error


def _labels(path: Path, options: Options) -> tuple[Label, ...]:
    labels = (Label("energy", "eV"),) if _value(_first(path), ENERGY) is not None else ()
    chosen = options.chosen_labels()
    if chosen is None:
        return labels
    if not chosen or [label.name for label in chosen] == [label.name for label in labels]:
        return labels if chosen else ()
    raise MsdeError(f"{path} has labels {'energy' if labels else 'none'}, and no others")
