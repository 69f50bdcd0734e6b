"""The types that readers, the pipeline and their callers share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError


@dataclass(frozen=True)
class Options:
    """Choices of the user; a reader ignores those that do not concern its format."""

    keep_hydrogens: bool | None = None  # None: the default of the format
    conformers: int = 1  # to make for molecules without geometry; 0: topology only
    max_atoms: int = 256  # memory of a slot grows with the square of its largest molecule
    smiles_column: str | None = None  # None: a column that is named like one
    name_column: str | None = None
    label_columns: tuple[str, ...] | None = None  # NAME or NAME=UNIT; None: all with numbers
    energy_key: str | None = None  # of files with several energies; None: the only one
    forces_key: str | None = None  # of files with several arrays of forces; None: the only one
    charge: int | None = None  # of every molecule whose file states none; None: zero
    encoding: str | None = None  # of text; None: found, see files.encoding_of
    delimiter: str | None = None  # of tables; None: found
    group_conformers: bool = False  # neighbours with the same title are one molecule
    keep_radicals: bool = False  # of formats in which they are mostly mistakes
    trust_pickle: bool = False

    def hydrogens(self, default: bool) -> bool:
        """Return whether to keep hydrogens, given the default of the format."""
        return default if self.keep_hydrogens is None else self.keep_hydrogens

    def chosen_labels(self, names: Collection[str] = ()) -> tuple[Label, ...] | None:
        """Return the labels that the user chose, or None: the reader finds them.

        Args:
            names: those of the file, which may hold equal signs.
        """
        if self.label_columns is None:
            return None
        parts = (column.rpartition("=") for column in self.label_columns)
        return tuple(
            Label(text) if text in names or not name else Label(name.strip(), unit.strip())
            for text, (name, _, unit) in zip(self.label_columns, parts, strict=True)
        )


@dataclass(frozen=True)
class Label:
    """A number that a data set holds for each molecule."""

    name: str
    unit: str = ""  # "" where the source does not say


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
