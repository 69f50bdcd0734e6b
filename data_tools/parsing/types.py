"""The types that readers, the pipeline and their callers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError

from ..options import Label, Options

__all__ = ["Facts", "Label", "Options", "Parsed", "RawMolecule", "Scanned", "attempt"]


@dataclass(frozen=True)
class Facts:
    """Properties of a file as a whole, for the manifest."""

    labels: tuple[Label, ...] = ()
    forces_unit: str | None = None  # None: no forces; "": the source does not say
    notes: tuple[str, ...] = ()  # for users of the data, a line each
    taken: tuple[tuple[str, str], ...] = ()  # role, as "SMILES" or "label", and column or field
    left_out: tuple[tuple[str, str], ...] = ()  # column or field that is not read, and the reason


@dataclass(frozen=True)
class RawMolecule:
    """One molecule as it stands in its file, before `build`."""

    source: str  # file name without folder and without .gz
    line: int  # its first line, or the number of its record, from 1
    name: str
    payload: Any  # text or arrays for the reader's `build`, or the MoleculeError of its scan
    y: tuple[float, ...] = ()  # labels, in the order of Facts.labels; NaN where missing


Scanned = tuple[int, str, Any, tuple[float, ...]]  # a RawMolecule without its source


@dataclass(frozen=True)
class Parsed:
    """One molecule as an RDKit Mol, with the data that a Mol has no field for."""

    mol: Chem.Mol
    y: tuple[float, ...] = ()
    forces: np.ndarray | None = None  # (num_conformers, num_atoms, 3)
    origin: Origin = Origin.SOURCE
    dropped: tuple[tuple[int, str], ...] = ()  # omitted conformers: line or number, and reason
    notes: tuple[str, ...] = ()  # on what is unusual or not stored, for `notes.jsonl`


def attempt(make: Callable[..., tuple[Any, tuple[float, ...]]], *arguments: Any) -> tuple[Any, Any]:
    """Return the payload and labels that `make(*arguments)` returns.

    A MoleculeError becomes the payload: `parse` raises it, and the molecule is rejected.
    """
    try:
        return make(*arguments)
    except MoleculeError as error:
        return error, ()
