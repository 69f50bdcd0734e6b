"""SMILES: a line is a SMILES, white space and a name (.smi, .txt), or a row of a CSV or TSV table.

The files hold no geometry; RDKit makes it, `options.conformers` of them for each molecule. Which
columns of a table are which, `tables` says; a table without a header is read like .smi.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rdkit import Chem, rdBase

from msde.chem.conformers import embed_conformers
from msde.chem.parsing import mol_from_smiles
from msde.chem.record import MAX_ATOMS, Origin, molecule_uid
from msde.chem.vocabulary import MoleculeError

from ..parsing.tables import delimiter_of, layout, read_table
from . import Facts, Options, Parsed, RawMolecule, content, open_text, same_for_all, source_name

KEEP_HYDROGENS = False
SUFFIXES = (".smi", ".smiles", ".ism", ".txt", ".csv", ".tsv", ".tab")


def recognises(path: Path) -> bool:
    """Tell by the name, and of a table by whether it has SMILES."""
    name = source_name(path).lower()
    if not name.endswith(SUFFIXES):
        return False
    with open_text(path) as file:
        first = next((line for line in file if line.strip() and line[0] != "#"), "")
    delimiter = delimiter_of(path)
    if "smiles" in first.lower():
        return True
    token = first.split(delimiter)[0].strip() if first.strip() else ""
    with rdBase.BlockLogs():
        return bool(token) and Chem.MolFromSmiles(token, sanitize=False) is not None


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find the labels; all tables have to have the same."""

    def labels(path: Path) -> tuple:
        delimiter = delimiter_of(path)
        return layout(path, options, delimiter).labels if delimiter else ()

    return Facts(labels=same_for_all(paths, labels))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each line or row that is neither blank nor a comment (#)."""
    delimiter = delimiter_of(path)
    if delimiter:
        yield from read_table(path, options, delimiter)
        return
    source = source_name(path)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            smiles, _, name = line.strip().partition("\t" if "\t" in line else " ")
            if number == 1 and smiles.lower() == "smiles":
                continue
            if smiles and not smiles.startswith("#"):
                yield RawMolecule(source, number, name.strip(), smiles)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse the SMILES and make conformers, seeded by the place of the molecule in its file."""
    mol = mol_from_smiles(content(raw))
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("no atoms")
    largest = min(options.max_atoms, MAX_ATOMS if options.conformers else options.max_atoms)
    if mol.GetNumAtoms() > largest:
        raise MoleculeError(f"more than {largest} atoms: {mol.GetNumAtoms()}")
    if options.conformers == 0:
        mol = Chem.AddHs(mol) if keep_hydrogens else mol
        return Parsed(mol, raw.y, origin=Origin.NO_GEOMETRY)
    seed = molecule_uid(raw.source, raw.line)
    mol = embed_conformers(mol, seed, options.conformers, keep_hydrogens)
    return Parsed(mol, raw.y, origin=Origin.CONFORMERS_MADE)
