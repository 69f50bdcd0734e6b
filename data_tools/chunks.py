"""What a worker does: turn a chunk of raw molecules into columns, rejects and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from msde import codec
from msde.codec import MoleculeColumns
from msde.molecule import (
    MoleculeError,
    MoleculeRecord,
    molecule_uid,
    outside_vocabulary,
    record_from_mol,
    silence_rdkit,
)

from .readers import Options, Parsed, RawMolecule, get_reader

CHUNK = 64  # raw molecules that a worker takes at a time; shards end between chunks
OUTSIDE_VOCABULARY = "not seen by the model"  # begins the notes on atoms of such molecules
MAX_ATOMS = 256  # memory of a slot grows with the square of its largest molecule


@dataclass(frozen=True)
class Task:
    """How molecules are converted: all that a worker has to know besides them."""

    format: str
    options: Options = Options()
    num_labels: int = 0
    max_atoms: int = MAX_ATOMS


@dataclass(frozen=True)
class Converted:
    """What became of a chunk; rejects and notes are places in the chunk and reasons."""

    columns: MoleculeColumns | None  # None: nothing of it could be converted
    rejects: list[tuple[int, str]]
    notes: list[tuple[int, str]]


def convert_one(raw: RawMolecule, task: Task) -> MoleculeRecord | str:
    """Convert one molecule, or return the reason why it cannot be."""
    return _convert_one(raw, task, get_reader(task.format))[0]


def _convert_one(
    raw: RawMolecule, task: Task, reader: ModuleType
) -> tuple[MoleculeRecord | str, Sequence[tuple[int, str]]]:
    """Convert one molecule or say why it cannot be, and which of its conformers were left out."""
    try:
        parsed = reader.parse(raw, task.options)
        return _record(raw, parsed, task), parsed.dropped
    except MoleculeError as error:
        return str(error), ()
    except MemoryError:  # of the machine's making, not the molecule's: it might do on another one
        raise
    except Exception as error:  # whatever a molecule does to a library, the others go on
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", ()


def _record(raw: RawMolecule, parsed: Parsed, task: Task) -> MoleculeRecord:
    if parsed.mol.GetNumAtoms() > task.max_atoms:
        raise MoleculeError(f"more than {task.max_atoms} atoms: {parsed.mol.GetNumAtoms()}")
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
    rejects, notes = [], []
    for place, raw in enumerate(raws):
        result, dropped = _convert_one(raw, task, reader)
        notes += [(place, f"{reason} ({where})") for where, reason in dropped]
        if isinstance(result, str):
            rejects.append((place, result))
            continue
        records.append(result)
        unusual = outside_vocabulary(result)
        if unusual:
            notes.append((place, f"{OUTSIDE_VOCABULARY}: {', '.join(unusual)}"))
    columns = codec.columns_from_records(records) if records else None
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
