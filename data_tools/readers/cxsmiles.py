"""Tables with a column of CXSMILES that carry coordinates, hydrogens included.

Names and labels are found as in `parsing.tables`.
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

GEOMETRY = re.compile(r"\|\([^,;]+,[^,;]+,[^,;)]+")  # begins 3D coordinates of a CXSMILES


class Reader(BaseReader):
    follows = TABLE

    def recognises(self, path: Path) -> bool:
        """Return whether all of the first rows of a table hold 3D coordinates."""
        if not is_table(path):
            return False
        first = list(islice(rows(path, dialect_of(path, self.options)), 1, 6))
        return bool(first) and all(any(map(GEOMETRY.search, cells)) for _, cells in first)

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
        if not any(conformer.Is3D() for conformer in mol.GetConformers()):
            raise MoleculeError("no 3D conformer")
        assign_stereo(mol)
        return Parsed(mol if self.options.keep_hydrogens else remove_hydrogens(mol)[0], raw.y)
