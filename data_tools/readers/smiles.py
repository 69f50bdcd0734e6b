"""SMILES: a line is a SMILES, white space and a name (.smi, .txt), or a row of a CSV or TSV table.

The files hold no geometry; RDKit makes it, `options.conformers` of them for each molecule. The
columns of a table are found as in `parsing.tables`; a table without a header is read like .smi.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem, rdBase

from msde.chem.conformers import embed_conformers
from msde.chem.parsing import mol_from_smiles
from msde.chem.record import MAX_ATOMS, Origin, molecule_uid
from msde.chem.vocabulary import MoleculeError

from ..parsing import BaseReader, Facts, Parsed, RawMolecule, Scanned
from ..parsing.files import open_text
from ..parsing.tables import delimiter_of, layout, read_table


class Reader(BaseReader):
    suffixes = (".smi", ".smiles", ".ism", ".txt", ".csv", ".tsv", ".tab")

    def recognises(self, path: Path) -> bool:
        """Return whether the suffix fits and the first line holds a SMILES, or names a column."""
        if not super().recognises(path):
            return False
        with open_text(path) as file:
            first = next((line for line in file if line.strip() and line[0] != "#"), "")
        if "smiles" in first.lower():
            return True
        token = first and first.split(delimiter_of(path))[0].strip()
        with rdBase.BlockLogs():
            return bool(token) and Chem.MolFromSmiles(token, sanitize=False) is not None

    def file_facts(self, path: Path) -> Facts:
        delimiter = delimiter_of(path)
        return Facts(layout(path, self.options, delimiter).labels) if delimiter else Facts()

    def scan(self, path: Path) -> Iterator[Scanned]:
        delimiter = delimiter_of(path)
        if delimiter:
            yield from read_table(path, self.options, delimiter)
            return
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                smiles, _, name = line.strip().partition("\t" if "\t" in line else " ")
                if number == 1 and smiles.lower() == "smiles":
                    continue
                if smiles and not smiles.startswith("#"):
                    yield number, name.strip(), smiles, ()

    def build(self, raw: RawMolecule) -> Parsed:
        """Parse the SMILES and make conformers, seeded by the place of the molecule in its file."""
        mol = mol_from_smiles(raw.payload)
        if mol.GetNumAtoms() == 0:
            raise MoleculeError("no atoms")
        largest = min(
            self.options.max_atoms, MAX_ATOMS if self.options.conformers else self.options.max_atoms
        )
        if mol.GetNumAtoms() > largest:
            raise MoleculeError(f"more than {largest} atoms: {mol.GetNumAtoms()}")
        if self.options.conformers == 0:
            mol = Chem.AddHs(mol) if self.options.keep_hydrogens else mol
            return Parsed(mol, raw.y, origin=Origin.NO_GEOMETRY)
        seed = molecule_uid(raw.source, raw.line)
        mol = embed_conformers(mol, seed, self.options.conformers, self.options.keep_hydrogens)
        return Parsed(mol, raw.y, origin=Origin.CONFORMERS_MADE)
