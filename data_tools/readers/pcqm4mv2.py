"""PCQM4Mv2 as its authors give it: an SD file of DFT geometry, and `data.csv.gz` with the gap.

`pcqm4m-v2-train.sdf` holds the 3,378,606 molecules of the training part, without hydrogens, in the
order of the first rows of `data.csv.gz` (columns idx, smiles, homolumogap; eV). The table has to
lie beside the SD file, or in `raw/` or `pcqm4m-v2/raw/` there, where its archive puts it. A record
whose heavy atoms and bonds are not those of the SMILES in its row is refused: its label would be
another molecule's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.tables import labels_from, rows
from . import Facts, Label, Options, Parsed, RawMolecule, content, open_bytes, source_name
from .sdf import mol_from_block, records

KEEP_HYDROGENS = False
LABELS = (Label("homolumogap", "eV"),)
COLUMNS = ["idx", "smiles", "homolumogap"]
NOT_HEAVY = re.compile(r"H\d*(?![a-z\d])|[+-]\d*$")  # hydrogens and charge in a formula
PLACES = ("", "raw", "pcqm4m-v2/raw")


def recognises(path: Path) -> bool:
    """Tell by the name, and of the table by whether it lies beside such an SD file."""
    if source_name(path) == "data.csv":
        return any(recognises(other) for other in path.parent.glob("pcqm4m-v2*"))
    return source_name(path).lower().startswith("pcqm4m-v2") and _is_sdf(path)


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Make sure that every SD file has its table."""
    if options.chosen_labels() not in (None, (), LABELS, (Label("homolumogap"),)):
        raise MsdeError("the only label of pcqm4mv2 is homolumogap")
    sdfs = [path for path in paths if _is_sdf(path)]
    if not sdfs:
        raise MsdeError(f"{paths[0]} is no SD file; give pcqm4m-v2-train.sdf")
    for path in sdfs:
        _table(path)
    return Facts(labels=_labels(options))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each record with the SMILES and the label of its row; a table itself yields nothing."""
    if not _is_sdf(path):
        return
    source = source_name(path)
    table = _table(path)
    pairs = rows(table, ",")
    header = next(pairs, (0, []))[1]
    if header != COLUMNS:
        raise MsdeError(f"{table} has columns {header}, expected {COLUMNS}")
    with open_bytes(path) as file:
        for line, block in records(file, path):
            row = next(pairs, (0, None))[1]
            yield _raw(source, line, block, row, _labels(options))


def _labels(options: Options) -> tuple[Label, ...]:
    return () if options.chosen_labels() == () else LABELS


def _raw(
    source: str, line: int, block: str, row: list[str] | None, labels: tuple[Label, ...]
) -> RawMolecule:
    if row is None or len(row) != len(COLUMNS):
        missing = MoleculeError("the table has no row for this record")
        return RawMolecule(source, line, "", missing)
    index, smiles, gap = row
    try:
        y = labels_from([gap][: len(labels)], labels)
    except MoleculeError as error:
        return RawMolecule(source, line, index, error)
    return RawMolecule(source, line, index, (block, smiles), y)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse the mol block and compare it to the SMILES of its row."""
    block, smiles = content(raw)
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    # Where hydrogens are implied a wrong bond makes no radical.
    mol = mol_from_block(block, keep_hydrogens, True, may_lack_hydrogens=not keep_hydrogens)
    expected = Chem.MolFromSmiles(smiles, sanitize=False)
    if expected is not None:
        expected.UpdatePropertyCache(strict=False)
    if expected is None or _heavy(mol) != _heavy(expected):
        raise MoleculeError(f"wrong label alignment: the row of this record is {smiles[:100]}")
    return Parsed(mol, raw.y)


def _heavy(mol: Chem.Mol) -> tuple[str, int]:
    """Return the formula of heavy atoms, and how many bonds join them.

    Functions of RDKit that see the whole molecule do it in a tenth of the time that a loop takes.
    """
    hydrogens = mol.GetNumAtoms() - mol.GetNumHeavyAtoms()
    formula = NOT_HEAVY.sub("", rdMolDescriptors.CalcMolFormula(mol))
    return formula, mol.GetNumBonds() - hydrogens


def _is_sdf(path: Path) -> bool:
    return source_name(path).lower().endswith(".sdf")


def _table(path: Path) -> Path:
    for place, name in itertools.product(PLACES, ("data.csv.gz", "data.csv")):
        if (path.parent / place / name).is_file():
            return path.parent / place / name
    raise MsdeError(
        f"data.csv.gz is not beside {path}; put it there, or use --format sdf to go without labels"
    )
