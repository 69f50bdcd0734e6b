"""LMDB files of Uni-Mol (Zhou et al. 2023): pickled dicts of atoms, coordinates and SMILES.

`coordinates` lists conformers whose atoms are in the order of the SMILES, hydrogens after the
others; the flat drawing that Uni-Mol puts last is omitted. A `target` is a label. RDKit made these
conformers for their authors, but they come from the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.parsing import mol_from_smiles
from msde.chem.vocabulary import MoleculeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.chemistry import (
    LACKS_HYDROGENS,
    remove_hydrogens,
    set_conformers,
    without_drawings,
)
from ..parsing.databases import first_record, peek, records
from ..parsing.labels import all_or_none
from ..parsing.pickles import load_dict
from ..parsing.reader import malformed_as_error


class Reader(BaseReader):
    suffixes = (".lmdb",)

    def recognises(self, path: Path) -> bool:
        """Return whether the first pickle has the words; it is not loaded."""
        value = peek(path) if super().recognises(path) else b""
        return b"coordinates" in value and b"atoms" in value

    def is_pickle(self, name: str) -> bool:
        return True

    def file_facts(self, path: Path) -> Facts:
        count = np.size(first_record(path, load_dict).get("target", ()))
        names = ["target"] if count == 1 else [f"target_{place}" for place in range(count)]
        return Facts(all_or_none(path, tuple(Label(name) for name in names), self.options))

    def scan(self, path: Path) -> Iterator[Scanned]:
        is_labelled = bool(self.file_facts(path).labels)
        for number, value in records(path):
            yield number + 1, "", (value, is_labelled), ()

    def build(self, raw: RawMolecule) -> Parsed:
        value, is_labelled = raw.payload
        entry = load_dict(value)
        with malformed_as_error():
            symbols = [str(symbol) for symbol in entry["atoms"]]
            smiles = str(entry["smi"])
            positions = np.asarray(entry["coordinates"], np.float64).reshape(-1, len(symbols), 3)
            targets = np.ravel(entry.get("target", ())) if is_labelled else ()
            y = tuple(float(target) for target in targets)
        mol = mol_from_smiles(smiles)
        full = Chem.AddHs(mol)
        mol = full if "H" in symbols else mol
        if [atom.GetSymbol() for atom in mol.GetAtoms()] != symbols:
            raise MoleculeError("its SMILES has other atoms than its geometry")
        if self.options.keep_hydrogens and mol.GetNumAtoms() < full.GetNumAtoms():
            raise MoleculeError(LACKS_HYDROGENS)
        set_conformers(mol, without_drawings(positions))
        return Parsed(mol if self.options.keep_hydrogens else remove_hydrogens(mol)[0], y)
