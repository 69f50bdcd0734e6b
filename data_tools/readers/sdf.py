"""SD files: mol blocks with 3D coordinates, separated by lines of four dollar signs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem

from msde.molecule import mol_from_molblock

from . import RawMolecule, open_text, source_name


def read(path: Path) -> Iterator[RawMolecule]:
    """Yield each record; its name is the title line."""
    with open_text(path) as file:
        lines: list[str] = []
        first = 1
        for number, line in enumerate(file, start=1):
            if line.startswith("$$$$"):
                yield _record(path, first, lines)
                lines, first = [], number + 1
            else:
                lines.append(line)
        if any(line.strip() for line in lines):
            yield _record(path, first, lines)


def _record(path: Path, first: int, lines: list[str]) -> RawMolecule:
    name = lines[0].strip() if lines else ""
    return RawMolecule(source_name(path), first, name, "".join(lines))


def to_mol(raw: RawMolecule, keep_hydrogens: bool, seed: int) -> Chem.Mol:
    """Parse the mol block; stereochemistry comes from its coordinates."""
    return mol_from_molblock(raw.text, keep_hydrogens)
