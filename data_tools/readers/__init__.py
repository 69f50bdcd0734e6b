"""Readers of molecular file formats, one module a format; FORMATS names them.

A reader is a module with

    KEEP_HYDROGENS          whether its molecules keep their hydrogens by default
    recognises(path)        whether a file looks like this format, for `--format auto`
    facts(paths, options)   what the manifest should say: Facts
    read(path, options)     yields RawMolecules as fast as the file can be scanned
    parse(raw, options)     turns one into a Parsed molecule, in a worker process; it raises
                            MoleculeError with the reason where it cannot

and, where files of the format can be pickles, pickled(path), which says so without opening more
than the name or first bytes. Such files are refused without `--trust-pickle`: `check_trusted`.

What several readers share is in the other modules here: `chemistry` (hydrogens, radicals,
conformers), `perception` (bonds from positions), `tables` (columns of CSV files), `databases`
(LMDB).
"""

from __future__ import annotations

import gzip
import importlib
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TextIO

import numpy as np
from rdkit import Chem

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

# In this order `--format auto` asks them whether they recognise a file.
FORMATS = (
    "cxsmiles",
    "pcqm4mv2",
    "qm9",
    "ase",
    "md17",
    "xyz",
    "geom",
    "moleculenet",
    "pyg",
    "unimol",
    "fairchem",
    "sdf",
    "smiles",
)


def get_reader(name: str) -> ModuleType:
    """Return the module that reads a format; only what it needs is imported."""
    return importlib.import_module(f".{name}", __name__)


@dataclass(frozen=True)
class Options:
    """What the user chose; each reader heeds what concerns it."""

    keep_hydrogens: bool | None = None  # None: as the reader has it
    conformers: int = 1  # to make for molecules without geometry; 0: topology only
    max_atoms: int = 256  # memory of a slot grows with the square of its largest molecule
    smiles_column: str | None = None  # None: a column that is named like one
    name_column: str | None = None
    label_columns: tuple[str, ...] | None = None  # NAME or NAME=UNIT; None: all with numbers
    group_conformers: bool = False  # neighbours with the same title are one molecule
    keep_radicals: bool = False  # of formats in which they are mostly mistakes
    trust_pickle: bool = False

    def hydrogens(self, default: bool) -> bool:
        """Return whether to keep hydrogens, given what the reader does by default."""
        return default if self.keep_hydrogens is None else self.keep_hydrogens

    def chosen_labels(self) -> tuple[Label, ...] | None:
        """Return the labels that the user asked for, or None: the reader finds them."""
        if self.label_columns is None:
            return None
        parts = (column.partition("=") for column in self.label_columns)
        return tuple(Label(name, unit) for name, _, unit in parts)


@dataclass(frozen=True)
class Label:
    """A number that a data set knows of each molecule."""

    name: str
    unit: str = ""  # "" where the source does not say


@dataclass(frozen=True)
class Facts:
    """What a reader knows of its files as a whole."""

    labels: tuple[Label, ...] = ()
    forces_unit: str | None = None
    notes: tuple[str, ...] = ()  # what a user of the data should know, a line each


@dataclass(frozen=True)
class RawMolecule:
    """One molecule as it stands in its file."""

    source: str  # file name without folder and without .gz
    line: int  # its first line, or the number of its record, from 1
    name: str
    payload: Any  # text or arrays for the reader's `parse`, or the MoleculeError it will raise
    y: tuple[float, ...] = ()  # labels, in the order of Facts.labels; NaN where missing


@dataclass(frozen=True)
class Parsed:
    """One molecule as RDKit holds it, with what RDKit has no place for."""

    mol: Chem.Mol
    y: tuple[float, ...] = ()
    forces: np.ndarray | None = None  # (num_conformers, num_atoms, 3)
    origin: Origin = Origin.SOURCE
    dropped: tuple[tuple[int, str], ...] = ()  # conformers left out: line or number, and why


def content(raw: RawMolecule) -> Any:
    """Return the payload, or raise what the reader could not know to be wrong before."""
    if isinstance(raw.payload, MoleculeError):
        raise raw.payload
    return raw.payload


def check_trusted(reader: ModuleType, paths: Iterable[Path], options: Options) -> None:
    """Refuse pickles unless the user trusts them: to load one is to run what it says.

    Raises:
        MsdeError: one of the files is a pickle and `options.trust_pickle` is not set.
    """
    pickled: Callable[[Path], bool] = getattr(reader, "pickled", lambda path: False)
    if options.trust_pickle:
        return
    for path in paths:
        if pickled(path):
            raise MsdeError(
                f"{path} holds Python pickles, which can run any code when they are loaded; "
                "if you trust where it comes from, give --trust-pickle"
            )


def same_for_all(paths: Sequence[Path], find: Callable[[Path], tuple]) -> tuple:
    """Return what `find` says of every file; they have to agree.

    Raises:
        MsdeError: they do not; one data set has one list of labels.
    """
    first = find(paths[0])
    for path in paths[1:]:
        found = find(path)
        if found != first:
            names = [
                ", ".join(label.name for label in labels) or "none" for labels in (first, found)
            ]
            raise MsdeError(
                f"{paths[0]} has labels {names[0][:200]}, but {path} has {names[1][:200]}; "
                "choose with --label-columns those that all have"
            )
    return first


def needs(package: str) -> ModuleType:
    """Import a package that only some formats need."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MsdeError(
            f"this format needs the package {package.partition('.')[0]}; "
            "install it with pip install 'msde[formats]'"
        ) from error


def open_text(path: Path) -> TextIO:
    """Open a text file, compressed with gzip if it is named .gz; a byte order mark is skipped."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return open(path, encoding="utf-8-sig", errors="replace")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file of bytes, compressed with gzip if it is named .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def source_name(path: Path) -> str:
    """Return the name by which a file's molecules are known, the same with and without .gz."""
    return path.name.removesuffix(".gz")


def load_pickle(data: bytes) -> dict[str, Any]:
    """Load a pickled dict; callers have called `check_trusted`."""
    try:
        loaded = pickle.loads(data)
    except Exception as error:  # a pickle can raise anything
        raise MoleculeError(f"cannot be unpickled: {type(error).__name__}") from error
    if not isinstance(loaded, dict):
        raise MoleculeError(f"is a {type(loaded).__name__}, expected a dict")
    return loaded
