"""Tables with a column of CXSMILES that carry coordinates, hydrogens included.

Names and labels are found as `tables` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.chemistry import assign_stereo, implied_hydrogens
from ..parsing.tables import delimiter_of, layout, read_table, rows
from . import Facts, Options, Parsed, RawMolecule, content, same_for_all

KEEP_HYDROGENS = False
GEOMETRY = "|("  # begins the coordinates of a CXSMILES


def recognises(path: Path) -> bool:
    """Tell by the first rows of a table: they hold coordinates."""
    delimiter = delimiter_of(path)
    if delimiter is None:
        return False
    return any(GEOMETRY in cell for _, cells in islice(rows(path, delimiter), 5) for cell in cells)


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find the labels; all tables have to have the same."""
    return Facts(
        labels=same_for_all(paths, lambda path: layout(path, options, _delimiter(path)).labels)
    )


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each row of the table."""
    found = layout(path, options, _delimiter(path))
    if not found.header:
        raise MsdeError(f"{path} has no header that names a column of SMILES")
    yield from read_table(path, options, _delimiter(path))


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse SMILES and coordinates; a molecule whose geometry lacks a hydrogen is refused."""
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    parameters.allowCXSMILES = True
    mol = Chem.MolFromSmiles(content(raw), parameters)
    if mol is None:
        raise MoleculeError("cannot be parsed: CXSMILES syntax or chemistry")
    if implied_hydrogens(mol):
        raise MoleculeError("the geometry lacks hydrogens that the SMILES implies")
    if not any(conformer.Is3D() for conformer in mol.GetConformers()):
        raise MoleculeError("no 3D conformer")
    assign_stereo(mol)
    return Parsed(mol if options.hydrogens(KEEP_HYDROGENS) else Chem.RemoveHs(mol), raw.y)


def _delimiter(path: Path) -> str:
    return delimiter_of(path) or ","
