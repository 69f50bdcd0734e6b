"""CSV files with a `smiles` column of CXSMILES that carry coordinates, hydrogens included."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem

from msde.errors import MsdeError
from msde.molecule import MoleculeError

from . import RawMolecule, open_text, source_name


def read(path: Path) -> Iterator[RawMolecule]:
    """Yield each row of the table."""
    with open_text(path) as file:
        rows = csv.DictReader(file)
        if "smiles" not in (rows.fieldnames or ()):
            raise MsdeError(f"{path} has no column 'smiles', found {rows.fieldnames}")
        for row in rows:
            yield RawMolecule(source_name(path), rows.line_num, "", row["smiles"] or "")


def to_mol(raw: RawMolecule, keep_hydrogens: bool, seed: int) -> Chem.Mol:
    """Parse SMILES and coordinates; a molecule whose geometry lacks a hydrogen is refused."""
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    parameters.allowCXSMILES = True
    mol = Chem.MolFromSmiles(raw.text, parameters)
    if mol is None:
        raise MoleculeError("cannot be parsed: CXSMILES syntax or chemistry")
    if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        raise MoleculeError("the geometry lacks hydrogens that the SMILES implies")
    Chem.AssignStereochemistryFrom3D(mol)
    return mol if keep_hydrogens else Chem.RemoveHs(mol)
