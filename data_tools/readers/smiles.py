"""SMILES files: a line is a SMILES, white space and, if it has one, a name.

The files hold no geometry; RDKit makes one conformer for each molecule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem

from msde.molecule import embed_conformer, mol_from_smiles

from . import RawMolecule, open_text, source_name


def read(path: Path) -> Iterator[RawMolecule]:
    """Yield each line that is neither blank nor a comment (#)."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            smiles, _, name = line.strip().partition("\t" if "\t" in line else " ")
            if smiles and not smiles.startswith("#"):
                yield RawMolecule(source_name(path), number, name.strip(), smiles)


def to_mol(raw: RawMolecule, keep_hydrogens: bool, seed: int) -> Chem.Mol:
    """Parse the SMILES and embed one conformer, seeded by `seed` alone."""
    return embed_conformer(mol_from_smiles(raw.text), seed, keep_hydrogens)
