"""LMDB files of Uni-Mol (Zhou et al. 2023): pickled dicts of atoms, coordinates and SMILES.

`coordinates` lists conformers whose atoms are in the order of the SMILES, hydrogens after the
others; the flat drawing that Uni-Mol puts last is left out. A `target` is a label. RDKit made these
conformers for their authors, but they come from the file. Pickles are loaded if they are trusted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.parsing import mol_from_smiles
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.chemistry import remove_hydrogens, set_conformers, without_drawings
from ..parsing.databases import first_value, peek, records
from . import (
    Facts,
    Label,
    Options,
    Parsed,
    RawMolecule,
    check_trusted,
    content,
    load_pickle,
    same_for_all,
    source_name,
)

KEEP_HYDROGENS = False


def recognises(path: Path) -> bool:
    """Tell by the words in the first pickle, which is not loaded."""
    if path.suffix.lower() != ".lmdb":
        return False
    value = peek(path)
    return b"coordinates" in value and b"atoms" in value


def pickled(path: Path) -> bool:
    """Say that the files are pickles, all of them."""
    return True


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find how many targets there are."""
    check_trusted(sys.modules[__name__], paths, options)
    return Facts(labels=same_for_all(paths, lambda path: _labels(path, options)))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each record, still pickled."""
    check_trusted(sys.modules[__name__], [path], options)
    labels = _labels(path, options)
    for number, value in records(path):
        yield RawMolecule(source_name(path), number + 1, "", (value, bool(labels), path))


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Load the pickle and put its conformers on the molecule of its SMILES."""
    value, labelled, path = content(raw)
    check_trusted(sys.modules[__name__], [path], options)
    entry = load_pickle(value)
    try:
        symbols = [str(symbol) for symbol in entry["atoms"]]
        smiles = str(entry["smi"])
        positions = np.asarray(entry["coordinates"], np.float64).reshape(-1, len(symbols), 3)
    except (KeyError, ValueError, TypeError) as error:
        raise MoleculeError(f"cannot be parsed: {error}") from error
    y = tuple(float(value) for value in np.ravel(entry.get("target", ()))) if labelled else ()
    mol = mol_from_smiles(smiles)
    full = Chem.AddHs(mol)
    mol = full if "H" in symbols else mol
    if [atom.GetSymbol() for atom in mol.GetAtoms()] != symbols:
        raise MoleculeError("its SMILES has other atoms than its geometry")
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    if keep_hydrogens and mol.GetNumAtoms() < full.GetNumAtoms():
        raise MoleculeError("the geometry lacks hydrogens that its bonds imply")
    set_conformers(mol, without_drawings(positions))
    return Parsed(mol if keep_hydrogens else remove_hydrogens(mol)[0], y)


def _labels(path: Path, options: Options) -> tuple[Label, ...]:
    value = first_value(path)
    if not value:
        return ()
    try:
        count = np.size(load_pickle(value).get("target", ()))
    except MoleculeError as error:
        raise MsdeError(f"{path}: its first record {error}") from error
    names = ["target"] if count == 1 else [f"target_{place}" for place in range(count)]
    chosen = options.chosen_labels()
    if chosen is None or [label.name for label in chosen] == names:
        return chosen or tuple(Label(name) for name in names)
    if chosen:
        raise MsdeError(f"{path} has labels {', '.join(names) or 'none'}, and only all or none")
    return ()
