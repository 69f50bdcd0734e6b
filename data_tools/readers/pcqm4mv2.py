"""PCQM4Mv2 as its authors give it: an SD file of DFT geometry, and `data.csv.gz` with the gap.

`pcqm4m-v2-train.sdf` holds the 3,378,606 molecules of the training part, without hydrogens, in the
order of the first rows of `data.csv.gz` (columns idx, smiles, homolumogap; eV). The table has to
lie beside the SD file, or in `raw/` or `pcqm4m-v2/raw/` there, where its archive puts it. A record
whose heavy atoms and bonds are not those of the SMILES in its row is rejected: its label would be
another molecule's. Without the table there are no labels and no such check, which a note says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing import Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.files import has_suffix, open_bytes, source_name
from ..parsing.labels import all_or_none, conversions, scaled, units_of
from ..parsing.sd_files import Block, SDFWithTable, mol_from_block, records
from ..parsing.tables import header_of

LABELS = (Label("homolumogap", "eV"),)
COLUMNS = ["idx", "smiles", "homolumogap"]
NOT_HEAVY = re.compile(r"H\d*(?![a-z\d])|[+-]\d*$")  # hydrogens and charge in a formula
PLACES = ("", "raw/", "pcqm4m-v2/raw/")


class Reader(SDFWithTable):
    def recognises(self, path: Path) -> bool:
        """Return whether an SD file is named so, or a table lies beside such a file."""
        if source_name(path) == "data.csv":
            return any(self.recognises(other) for other in path.parent.glob("pcqm4m-v2*"))
        is_named = source_name(path).lower().startswith("pcqm4m-v2")
        return is_named and has_suffix(path, self.suffixes)

    def table_names(self, path: Path) -> Sequence[str]:
        return [f"{place}{name}" for place in PLACES for name in ("data.csv.gz", "data.csv")]

    def survey(self, path: Path) -> tuple[Facts, tuple[float, ...] | None]:
        """Return the facts, and the factors of labels; None: there is no table."""
        if self.find_table(path) is None and not self.options.label_columns:
            note = (
                f"data.csv.gz is not beside {path.name}: no labels, and no check of bonds by SMILES"
            )
            return Facts(notes=(note,)), None
        table = self.table(path)
        header = header_of(table, self.options)
        if header != COLUMNS:
            raise MsdeError(f"{table} has columns {header}, expected {COLUMNS}")
        labels, factors = all_or_none(path, LABELS, self.options)
        taken = (("name", "idx"), *(("label", label.name) for label in labels))
        return Facts(labels, notes=conversions(labels, units_of(LABELS)), taken=taken), factors

    def name_of(self, block: Block, cells: list[str]) -> str:
        return cells[0] if cells else ""

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each record with its row; without a table the payload lacks a SMILES."""
        if not has_suffix(path, self.suffixes):
            return
        factors = self.survey(path)[1]
        if factors is not None:
            yield from scaled(super().scan(path), factors)
            return
        with open_bytes(path) as file:
            for block in records(file, path, self.options.encoding):
                yield block.line, block.title, (block.text, None), ()

    def join(self, block: Block, cells: list[str]) -> tuple[str, str]:
        """Return the record and the SMILES of its row, which `build` compares."""
        return block.text, cells[1]

    def build(self, raw: RawMolecule) -> Parsed:
        block, smiles = raw.payload
        # Where hydrogens are implied a wrong bond makes no radical.
        mol = mol_from_block(
            block,
            self.options.keep_hydrogens,
            True,
            may_lack_hydrogens=not self.options.keep_hydrogens,
        )
        if smiles is None:
            return Parsed(mol)
        expected = Chem.MolFromSmiles(smiles, sanitize=False)
        if expected is not None:
            expected.UpdatePropertyCache(strict=False)
        if expected is None or _heavy(mol) != _heavy(expected):
            raise MoleculeError(f"wrong label alignment: the row of this record is {smiles[:100]}")
        return Parsed(mol, raw.y)


def _heavy(mol: Chem.Mol) -> tuple[str, int]:
    """Return the formula of heavy atoms, and how many bonds join them.

    RDKit's functions of the whole molecule take a tenth of the time of a loop.
    """
    hydrogens = mol.GetNumAtoms() - mol.GetNumHeavyAtoms()
    formula = NOT_HEAVY.sub("", rdMolDescriptors.CalcMolFormula(mol))
    return formula, mol.GetNumBonds() - hydrogens
