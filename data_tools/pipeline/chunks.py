"""What a worker does: turn a chunk of raw molecules into columns, rejects and notes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
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

from ..readers import Options, Parsed, RawMolecule, get_reader

CHUNK = 64  # raw molecules that a worker takes at a time; shards end between chunks
BATCH = 32  # of them parsed one after another: code and molecules stay in the processor's caches
OUTSIDE_VOCABULARY = "not seen by the model"  # begins the notes on atoms of such molecules


Result = TypeVar("Result")


@dataclass(frozen=True)
class Task:
    """How molecules are converted: all that a worker has to know besides them."""

    format: str
    options: Options = Options()
    num_labels: int = 0


@dataclass(frozen=True)
class Converted:
    """What became of a chunk; rejects and notes are places in the chunk and reasons."""

    columns: MoleculeColumns | None  # None: nothing of it could be converted
    rejects: list[tuple[int, str]]
    notes: list[tuple[int, str]]


def convert_one(raw: RawMolecule, task: Task) -> MoleculeRecord | str:
    """Convert one molecule, or return the reason why it cannot be."""
    return _convert_batch([raw], task, get_reader(task.format))[0][0]


def _convert_batch(
    raws: Sequence[RawMolecule], task: Task, reader: ModuleType
) -> list[tuple[MoleculeRecord | str, Sequence[tuple[int, str]]]]:
    """Convert molecules or say why they cannot be, and which of their conformers were left out."""
    parsed = [_or_reason(reader.parse, raw, task.options) for raw in raws]
    results = []
    for raw, found in zip(raws, parsed, strict=True):
        result = found if isinstance(found, str) else _or_reason(_record, raw, found, task)
        results.append((result, () if isinstance(result, str) else found.dropped))
    return results


def _or_reason(work: Callable[..., Result], *arguments: Any) -> Result | str:
    """Return what `work` does of a molecule, or the reason why it cannot."""
    try:
        return work(*arguments)
    except MoleculeError as error:
        return str(error)
    except MemoryError:  # of the machine's making, not the molecule's: it might do on another one
        raise
    except Exception as error:  # whatever a molecule does to a library, the others go on
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _record(raw: RawMolecule, parsed: Parsed, task: Task) -> MoleculeRecord:
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
    )


def _has_geometry(parsed: Parsed) -> bool:
    return any(c.Is3D() for c in parsed.mol.GetConformers())


def _labels(y: Sequence[float], num_labels: int) -> Sequence[float]:
    """Return the labels of a molecule; one that has none lacks all of them."""
    if not len(y):
        return [np.nan] * num_labels
    if len(y) != num_labels:
        raise MoleculeError(f"number of labels differs: {len(y)}, the data set has {num_labels}")
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


def convert_chunk(task: Task, raws: Sequence[RawMolecule]) -> Converted:
    """Convert molecules one by one; whatever happens to one, the others go on."""
    silence_rdkit()
    reader = get_reader(task.format)
    records: list[MoleculeRecord] = []
    places, rejects, notes = [], [], []
    for first in range(0, len(raws), BATCH):
        results = _convert_batch(raws[first : first + BATCH], task, reader)
        for place, (result, dropped) in enumerate(results, start=first):
            notes += [(place, f"{reason} ({where})") for where, reason in dropped]
            if isinstance(result, str):
                rejects.append((place, result))
                continue
            records.append(result)
            places.append(place)
    columns = codec.columns_from_records(records) if records else None
    if columns is not None and any_outside_vocabulary(columns.x):  # of most chunks none is
        for place, record in zip(places, records, strict=True):
            unusual = outside_vocabulary(record)
            if unusual:
                notes.append((place, f"{OUTSIDE_VOCABULARY}: {', '.join(unusual)}"))
        notes.sort(key=operator.itemgetter(0))
    return Converted(columns, rejects, notes)


def pack(converted: Converted) -> tuple[bytes, list[tuple[int, str]], list[tuple[int, str]]]:
    """Make the columns bytes for the way from a worker to the process that writes."""
    block = codec.encode(converted.columns) if converted.columns is not None else b""
    return block, converted.rejects, converted.notes


def unpack(
    packed: tuple[bytes, list[tuple[int, str]], list[tuple[int, str]]],
) -> Converted:
    """Undo `pack`."""
    block, rejects, notes = packed
    return Converted(codec.decode(block) if block else None, rejects, notes)


def convert_elsewhere(
    task: Task, raws: Sequence[RawMolecule]
) -> tuple[bytes, list[tuple[int, str]], list[tuple[int, str]]]:
    """Convert a chunk in a worker process."""
    return pack(convert_chunk(task, raws))
