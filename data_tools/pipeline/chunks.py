"""The work of one worker: a chunk of raw molecules becomes columns, rejects and notes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from msde.chem.parsing import silence_rdkit
from msde.chem.record import (
    MoleculeRecord,
    any_outside_vocabulary,
    molecule_uid,
    outside_vocabulary,
    record_from_mol,
)
from msde.chem.vocabulary import MoleculeError
from msde.data import codec
from msde.data.codec import MoleculeColumns

from ..parsing.types import Options, Parsed, RawMolecule
from ..readers import get_reader

CHUNK = 64  # raw molecules that a worker takes at a time; shards end between chunks
BATCH = 32  # of them parsed, then converted: both fit in the processor's caches
OUTSIDE_VOCABULARY = "not seen by the model"  # begins the notes on atoms of such molecules


Result = TypeVar("Result")


@dataclass(frozen=True)
class Task:
    """The settings that a worker needs to convert molecules."""

    format: str
    options: Options = Options()
    num_labels: int = 0


@dataclass(frozen=True)
class Converted:
    """The result of a chunk; rejects and notes are places in the chunk and reasons."""

    columns: MoleculeColumns | None  # None: all molecules were rejected
    rejects: list[tuple[int, str]]
    notes: list[tuple[int, str]]


def convert_chunk(task: Task, raws: Sequence[RawMolecule]) -> Converted:
    """Convert molecules one by one; the failure of one does not affect the others."""
    silence_rdkit()
    reader = get_reader(task.format, task.options)
    records: list[MoleculeRecord] = []
    places, rejects, notes = [], [], []
    for first in range(0, len(raws), BATCH):
        batch = raws[first : first + BATCH]
        parsed = [result_or_reason(reader.parse, raw) for raw in batch]
        for place, (raw, found) in enumerate(zip(batch, parsed, strict=True), start=first):
            remarks: list[str] = []
            made = (_record, raw, found, task, remarks)
            result = found if isinstance(found, str) else result_or_reason(*made)
            if isinstance(result, str):
                rejects.append((place, result))
                continue
            records.append(result)
            places.append(place)
            notes += [(place, f"{reason} ({where})") for where, reason in found.dropped]
            notes += [(place, note) for note in (*found.notes, *remarks)]
    columns = codec.columns_from_records(records) if records else None
    # In most chunks no molecule is outside.
    if columns is not None and any_outside_vocabulary(columns.x, columns.bond_attr):
        for place, record in zip(places, records, strict=True):
            unusual = outside_vocabulary(record)
            if unusual:
                notes.append((place, f"{OUTSIDE_VOCABULARY}: {', '.join(unusual)}"))
        notes.sort(key=operator.itemgetter(0))
    return Converted(columns, rejects, notes)


def result_or_reason(work: Callable[..., Result], *arguments: Any) -> Result | str:
    """Return the result of `work` on a molecule, or the reason of its failure."""
    try:
        return work(*arguments)
    except MoleculeError as error:
        return str(error)
    except MemoryError:  # the machine's failure, not the molecule's: another machine may succeed
        raise
    except Exception as error:  # libraries fail on molecules in many ways
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _record(raw: RawMolecule, parsed: Parsed, task: Task, notes: list[str]) -> MoleculeRecord:
    if parsed.mol.GetNumAtoms() > task.options.max_atoms:
        raise MoleculeError(f"more than {task.options.max_atoms} atoms: {parsed.mol.GetNumAtoms()}")
    return record_from_mol(
        parsed.mol,
        molecule_uid(raw.source, raw.line),
        raw.name,
        topology_only=task.options.conformers == 0 and not _has_geometry(parsed),
        y=_labels(parsed.y, task.num_labels),
        forces=_forces(parsed),
        origin=parsed.origin,
        notes=notes,
    )


def _has_geometry(parsed: Parsed) -> bool:
    mol = parsed.mol
    return mol.GetNumConformers() > 0 and any(c.Is3D() for c in mol.GetConformers())


def _labels(y: Sequence[float], num_labels: int) -> Sequence[float]:
    """Return the labels of a molecule; where it has none all are missing."""
    if not len(y):
        return [np.nan] * num_labels
    if len(y) != num_labels:
        raise MoleculeError(f"number of labels differs: {len(y)}, the data set has {num_labels}")
    for place, value in enumerate(y, start=1):
        if math.isinf(value):
            raise MoleculeError(f"a label that is not a finite number: {value} is label {place}")
    return y


def _forces(parsed: Parsed) -> np.ndarray | None:
    if parsed.forces is None:
        return None
    expected = (parsed.mol.GetNumConformers(), parsed.mol.GetNumAtoms(), 3)
    if parsed.forces.shape != expected:
        raise MoleculeError(f"forces do not fit: {parsed.forces.shape}, expected {expected}")
    if not np.isfinite(parsed.forces).all():
        raise MoleculeError("forces that are not finite numbers")
    return parsed.forces
