"""Readers of molecular file formats, one module a format.

A reader has `read(path)`, which yields RawMolecules as fast as the file can be scanned, and
`to_mol(raw, keep_hydrogens, seed)`, which parses one of them in a worker process and raises
MoleculeError with the reason where it cannot.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class RawMolecule:
    """The text of one molecule and where it stands."""

    source: str  # file name without folder and without .gz
    line: int  # first line of the molecule in the file, from 1
    name: str
    text: str


def open_text(path: Path) -> TextIO:
    """Open a text file, compressed with gzip if it is named .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return open(path, encoding="utf-8", errors="replace")


def source_name(path: Path) -> str:
    """Return the name by which a file's molecules are known, the same with and without .gz."""
    return path.name.removesuffix(".gz")
