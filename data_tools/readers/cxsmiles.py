"""Tables with a column of CXSMILES that carry coordinates, hydrogens included.

Names and labels are found as in `parsing.tables`. RDKit writes z = 0 as an empty field, so that a
planar molecule in the plane looks like a drawing; where an atom has three fields it is geometry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from msde.chem.parsing import mol_from_smiles
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import TABLE
from ..parsing import BaseReader, Facts, Parsed, RawMolecule, Scanned
from ..parsing.chemistry import assign_stereo, implied_hydrogens, remove_hydrogens
from ..parsing.tables import Layout, dialect_of, is_table, layout, read_table, rows

COORDINATES = re.compile(r"\|\(([^)|]*)\)")  # of a CXSMILES: those of its atoms between semicolons


class Reader(BaseReader):
    follows = TABLE

    def recognises(self, path: Path) -> bool:
        """Return whether any of the first rows of a table holds a third coordinate."""
        if not is_table(path):
            return False
        first = islice(rows(path, dialect_of(path, self.options)), 1, 6)
        atoms = (atom for _, cells in first for cell in cells for atom in _coordinates(cell))
        return any(len(atom) > 2 and atom[2].strip() for atom in atoms)

    def survey(self, path: Path) -> tuple[Facts, Layout]:
        found = layout(path, self.options)
        return found.facts, found

    def scan(self, path: Path) -> Iterator[Scanned]:
        found = self.survey(path)[1]
        if not found.header:
            raise MsdeError(f"{path} has no header that names a column of SMILES")
        return read_table(path, found)

    def build(self, raw: RawMolecule) -> Parsed:
        """Parse SMILES and coordinates; a molecule whose geometry lacks a hydrogen is rejected."""
        mol = mol_from_smiles(raw.payload, keep_hydrogens=True, coordinates=True)
        if implied_hydrogens(mol):
            raise MoleculeError("the geometry lacks hydrogens that the SMILES implies")
        is_solid = all(len(atom) > 2 for atom in _coordinates(raw.payload))
        for conformer in mol.GetConformers():
            conformer.Set3D(conformer.Is3D() or is_solid)
        if not any(conformer.Is3D() for conformer in mol.GetConformers()):
            raise MoleculeError("no 3D conformer")
        assign_stereo(mol)
        return Parsed(mol if self.options.keep_hydrogens else remove_hydrogens(mol)[0], raw.y)


def _coordinates(text: str) -> list[list[str]]:
    """Return the fields of each atom's coordinates in a CXSMILES."""
    found = COORDINATES.search(text)
    return [atom.split(",") for atom in found[1].split(";")] if found else []
