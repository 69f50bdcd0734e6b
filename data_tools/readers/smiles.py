"""SMILES: a line is a SMILES, white space and a name (.smi, .txt), or a row of a CSV or TSV table.

The files hold no geometry; RDKit makes it, `options.conformers` of them for each molecule. A
CXSMILES extension `|...|` is read, but for its coordinates. The columns of a table are found as in
`parsing.tables`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem, rdBase

from msde.chem.conformers import embed_conformers
from msde.chem.parsing import mol_from_smiles
from msde.chem.record import MAX_ATOMS, Origin, smiles_uid
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import TABLE
from ..parsing import BaseReader, Facts, Parsed, RawMolecule, Scanned
from ..parsing.files import UTF_8, encoding_of, has_suffix, open_text
from ..parsing.tables import Layout, is_table, layout, read_table

HEADER = (1, "smiles")  # line and first word of a header


class Reader(BaseReader):
    suffixes = (".smi", ".smiles", ".ism", ".txt", ".csv", ".tsv", ".tab")
    follows = (*TABLE, "conformers")

    def recognises(self, path: Path) -> bool:
        """Return whether the suffix fits; text of any kind (.txt) has to begin with a SMILES."""
        if not super().recognises(path):
            return False
        if not has_suffix(path, (".txt",)):
            return True
        smiles, _ = _smiles_and_name(self._first_line(path))
        with rdBase.BlockLogs():
            word = next(iter(smiles.split(maxsplit=1)), "!")
            mol = Chem.MolFromSmiles(word, sanitize=False)
        return mol is not None or smiles.lower() == "smiles"

    def survey(self, path: Path) -> tuple[Facts, Layout | None]:
        if is_table(path):
            found = layout(path, self.options)
            return found.facts, found
        columns = ("smiles_column", "name_column", "label_columns", "delimiter")
        self.options.refuse(columns, f"{path}, which is no table (.csv or .tsv)")
        if self._first_line(path).isdigit():
            raise MsdeError(
                f"{path} begins with a number, as XYZ files do, expected a SMILES; try --format xyz"
            )
        words = self._first_line(path).split()
        left_out: tuple[tuple[str, str], ...] = ()
        if words and words[0].lower() == HEADER[1] and len(words) > 2:
            reason = "what follows the SMILES is the name; name a table .tsv"
            left_out = tuple((word, reason) for word in words[2:])
        encoding = self.options.encoding or encoding_of(path)
        said = () if encoding == UTF_8 else (("encoding", encoding),)
        taken = (("SMILES", "before white space"), ("name", "after it"), *said)
        return Facts(taken=taken, left_out=left_out), None

    def _first_line(self, path: Path) -> str:
        with open_text(path, self.options.encoding) as file:
            return next((line.strip() for line in file if line.strip() and line[0] != "#"), "")

    def scan(self, path: Path) -> Iterator[Scanned]:
        if is_table(path):
            yield from read_table(path, self.survey(path)[1])
            return
        with open_text(path, self.options.encoding) as file:
            for number, line in enumerate(file, start=1):
                smiles, name = _smiles_and_name(line)
                if smiles and not smiles.startswith("#") and (number, smiles.lower()) != HEADER:
                    yield number, name, smiles, ()

    def build(self, raw: RawMolecule) -> Parsed:
        """Parse the SMILES and make conformers, the same wherever the molecule stands."""
        mol = mol_from_smiles(raw.payload)
        notes = _extension_notes(raw.payload) if "|" in raw.payload else ()
        if mol.GetNumAtoms() == 0:
            raise MoleculeError("no atoms")
        largest = min(
            self.options.max_atoms, MAX_ATOMS if self.options.conformers else self.options.max_atoms
        )
        if mol.GetNumAtoms() > largest:
            raise MoleculeError(f"more than {largest} atoms: {mol.GetNumAtoms()}")
        mol = Chem.AddHs(mol) if self.options.keep_hydrogens else mol
        if self.options.conformers == 0:
            return Parsed(mol, raw.y, origin=Origin.NO_GEOMETRY, notes=notes)
        count, keep_hydrogens = self.options.conformers, self.options.keep_hydrogens
        made: list[str] = []
        mol = embed_conformers(mol, smiles_uid(mol), count, keep_hydrogens, made)
        return Parsed(mol, raw.y, origin=Origin.CONFORMERS_MADE, notes=(*notes, *made))


def _smiles_and_name(line: str) -> tuple[str, str]:
    """Cut a line at its first tab or blank; an extension `|...|` stays with the SMILES."""
    smiles, _, rest = line.strip().partition("\t" if "\t" in line.strip() else " ")
    rest = rest.strip()
    if rest.startswith("|") and "|" in rest[1:]:
        extension, _, rest = rest[1:].partition("|")
        smiles = f"{smiles} |{extension}|"
    return smiles.strip(), rest.strip()


def _extension_notes(smiles: str) -> tuple[str, ...]:
    """Return a note on coordinates in a CXSMILES extension."""
    coordinates = "coordinates of the CXSMILES are not read: --format cxsmiles does"
    return (coordinates,) if "|(" in smiles else ()
