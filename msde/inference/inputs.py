"""Input of a pretrained model: a list of molecules or a folder of shards, in chunks and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.parsing import is_missing
from msde.chem.record import MoleculeRecord, Origin, outside_vocabulary, record_from
from msde.chem.vocabulary import CHIRALITY, MoleculeError
from msde.data.codec import MoleculeColumns, columns_from_records
from msde.data.mixture import Mixture
from msde.data.pyg import record_from_pyg
from msde.data.shards import ShardDataset
from msde.errors import MsdeError, one_line

CHUNK_MOLECULES = 1024  # read together, then sorted by size
BATCH_ATOMS = 4096  # limits of one batch of the encoders
BATCH_PAIRS = 200_000
AS_A_LIST = "give several molecules as a list, also if it is only one"


@dataclass
class Chunk:
    """Some molecules of the input: those that could be read, and the reasons of the others."""

    first: int  # number of its first molecule in the input
    size: int
    columns: MoleculeColumns | None = None  # None where nothing could be read
    places: list[int] = field(default_factory=list)  # in the chunk, of each molecule of `columns`
    reasons: dict[int, str] = field(default_factory=dict)  # by number in the input, as notes
    notes: dict[int, str] = field(default_factory=dict)
    flat: list[int] = field(default_factory=list)  # without a geometry, although 3D is asked for


class MoleculeList:
    """Molecules in a list."""

    def __init__(self, molecules: Sequence[Any], views: list[str], keep_hydrogens: bool) -> None:
        """Keep the molecules, which are read chunk by chunk."""
        self._molecules, self._views, self._hydrogens = molecules, views, keep_hydrogens

    def __len__(self) -> int:
        return len(self._molecules)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the molecules in order."""
        for first in range(0, len(self), CHUNK_MOLECULES):
            members = self._molecules[first : first + CHUNK_MOLECULES]
            chunk = Chunk(first, len(members))
            records = []
            for place, molecule in enumerate(members):
                record = self._read(molecule, place, chunk)
                if record is not None:
                    records.append(record)
                    chunk.places.append(place)
            chunk.columns = columns_from_records(records) if records else None
            yield chunk

    def _read(self, molecule: Any, place: int, chunk: Chunk) -> MoleculeRecord | None:
        """Return a molecule as a record; without one the chunk gets the reason."""
        number = chunk.first + place
        notes: list[str] = []
        remarks: list[str] = []
        flat_only = self._views == ["2d"]
        record, problem = self._record(molecule, number, flat_only, remarks)
        if record is None and "2d" in self._views and not flat_only:
            remarks.clear()
            record, _ = self._record(molecule, number, True, remarks)
            if record is not None:
                chunk.flat.append(place)
                notes.append(f"no 3D view: {problem}")
        if record is None:
            chunk.reasons[number] = problem
            return None
        unusual = outside_vocabulary(record)
        if hasattr(molecule, "edge_index") and "cip" not in molecule:
            is_tagged = (record.x[:, CHIRALITY] > 0).any()
            unusual += ["chirality, since its data lack cip"] * bool(is_tagged)
        if unusual:
            notes.append(f"not seen by the model: {', '.join(unusual)}")
        notes += remarks
        if notes:
            chunk.notes[number] = "; ".join(notes)
        return record

    def _record(
        self, molecule: Any, number: int, topology_only: bool, notes: list[str]
    ) -> tuple[MoleculeRecord | None, str]:
        """Return a molecule as a record, or None and the reason why it cannot be one."""
        try:
            if isinstance(molecule, MoleculeError):  # a reader's
                raise molecule
            if hasattr(molecule, "edge_index"):
                return record_from_pyg(molecule, number, topology_only), ""
            # RDKit's parsers return None for what they cannot parse; missing cells are often NaN.
            if not isinstance(molecule, str) and is_missing(molecule):
                raise MoleculeError(f"no SMILES: it is {molecule}")
            return record_from(molecule, topology_only, self._hydrogens, notes), ""
        except TypeError as error:
            raise TypeError(f"molecule {number}: {error}") from error
        except Exception as error:  # libraries fail on molecules in many ways
            return None, one_line(error)


class ShardFolder:
    """Molecules in a folder of shards."""

    def __init__(self, dataset: ShardDataset, views: list[str]) -> None:
        """Keep the data set, which is read chunk by chunk; the 3D view needs its positions."""
        self._data = Mixture([dataset])
        self._views = views

    def __len__(self) -> int:
        return len(self._data)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the molecules in order."""
        for first in range(0, len(self), CHUNK_MOLECULES):
            positions = np.arange(first, min(first + CHUNK_MOLECULES, len(self)))
            columns = self._data.fetch(positions)
            chunk = Chunk(first, len(positions), columns, list(range(len(positions))))
            if "3d" in self._views:
                chunk.flat = np.flatnonzero(columns.origin & Origin.NO_GEOMETRY).tolist()
                told = chunk.notes if "2d" in self._views else chunk.reasons
                numbers = (first + place for place in chunk.flat)
                told.update(dict.fromkeys(numbers, "no 3D view: the shards hold no geometry"))
            yield chunk


def open_input(
    molecules: Any, views: list[str], keep_hydrogens: bool
) -> MoleculeList | ShardFolder:
    """Return the molecules of a list or of a folder of shards.

    Raises:
        MsdeError: a path is not a folder of shards, or there is no list.
    """
    if isinstance(molecules, (str, Path)):
        if not Path(molecules).is_dir():
            raise MsdeError(f"{molecules} is not a folder of shards; {AS_A_LIST}")
        return ShardFolder(ShardDataset(Path(molecules)), views)
    return MoleculeList(list_of(molecules), views, keep_hydrogens)


def list_of(molecules: Any) -> list[Any]:
    """Return several molecules as a list; a table or a 2D array of one column is that column.

    Raises:
        MsdeError: it is a single molecule, or a table of several columns.
    """
    if isinstance(molecules, (str, Path)):  # letters of a SMILES are SMILES, too
        raise MsdeError(f"found {str(molecules)!r}, expected molecules; {AS_A_LIST}")
    if not isinstance(molecules, Iterable):
        kind = type(molecules).__name__
        raise MsdeError(f"found one thing of type {kind}, expected molecules; {AS_A_LIST}")
    shape: tuple[int, ...] = getattr(molecules, "shape", ())
    if len(shape) == 2:
        if shape[1] != 1:
            raise MsdeError(f"found {shape[1]} columns, expected the one of molecules; choose it")
        return np.asarray(molecules)[:, 0].tolist()
    return list(molecules)


def smiles_or_mols(molecules: Any) -> list[Any]:
    """Return SMILES and RDKit Mols as a list, in which "" stands for a missing value.

    Raises:
        MsdeError: there is no list.
        TypeError: something is not a molecule.
    """
    found = ["" if is_missing(molecule) else molecule for molecule in list_of(molecules)]
    for number, molecule in enumerate(found):
        if not isinstance(molecule, str):
            check_is_mol(molecule, number, "a SMILES string or an RDKit Mol")
    return found


def check_is_mol(molecule: Any, number: int, expected: str) -> None:
    """Raise a TypeError that names the type and the place of what is no RDKit Mol."""
    if not hasattr(molecule, "GetConformer"):
        kind = type(molecule).__name__
        raise TypeError(f"molecule {number}: it is of type {kind}, expected {expected}")


def batches(columns: MoleculeColumns) -> Iterator[np.ndarray]:
    """Cut molecules, sorted by size, into batches of limited atoms and pairs."""
    order = np.argsort(columns.num_atoms, kind="stable")
    atoms = columns.num_atoms[order].astype(np.int64)
    pairs = atoms * (atoms - 1) // 2
    first = total_atoms = total_pairs = 0
    for k in range(len(order)):
        total_atoms, total_pairs = total_atoms + atoms[k], total_pairs + pairs[k]
        if k > first and (total_atoms > BATCH_ATOMS or total_pairs > BATCH_PAIRS):
            yield order[first:k]
            first, total_atoms, total_pairs = k, atoms[k], pairs[k]
    if first < len(order):
        yield order[first:]
