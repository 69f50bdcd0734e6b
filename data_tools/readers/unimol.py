"""LMDB files of Uni-Mol (Zhou et al. 2023): pickled dicts of atoms, coordinates and SMILES.

`coordinates` lists conformers whose atoms are in the order of the SMILES, hydrogens after the
others; the flat drawing that Uni-Mol puts last is omitted. A `target` is a label, or several; one
that is None, NaN or "" is missing. RDKit made these conformers for their authors, but they come
from the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from ..parsing.databases import count_records, first_records, peek, records
from ..parsing.labels import all_or_none, is_missing, scale, value_of
from ..parsing.pickles import load_dict
from ..parsing.reader import malformed_as_error

SAMPLE = 100  # records that decide how many targets there are
FIELDS = {
    "atoms": "symbols of the atoms",
    "coordinates": "positions of the conformers",
    "smi": "SMILES",
    "target": "labels",
}


class Reader(BaseReader):
    suffixes = (".lmdb",)

    def recognises(self, path: Path) -> bool:
        """Return whether the first pickle has the words; it is not loaded."""
        value = peek(path) if super().recognises(path) else b""
        return b"coordinates" in value and b"atoms" in value

    def is_pickle(self, name: str) -> bool:
        return True

    def pickled(self, path: Path) -> bytes:
        return next(records(path), (0, b""))[1]

    def count(self, path: Path) -> int:
        return count_records(path)

    def scan(self, path: Path) -> Iterator[Scanned]:
        labels, factors = self.survey(path)[1]
        for number, value in records(path):
            yield number + 1, "", (value, labels, factors), ()

    def build(self, raw: RawMolecule) -> Parsed:
        value, labels, factors = raw.payload
        entry = load_dict(value)
        with malformed_as_error():
            symbols = [str(symbol) for symbol in _required(entry, "atoms")]
            smiles = _required(entry, "smi")
            if not isinstance(smiles, str):
                raise MoleculeError(f"'smi' (SMILES) is {str(smiles)[:20]}, expected text")
            found = np.asarray(_required(entry, "coordinates"), np.float64)
            positions = found.reshape(-1, len(symbols), 3)
        y = scale(_targets(entry, labels), factors)
        mol = mol_from_smiles(smiles, keep_isotopes=True)
        full = Chem.AddHs(mol)
        mol = full if "H" in symbols else mol
        if [atom.GetSymbol() for atom in mol.GetAtoms()] != symbols:
            raise MoleculeError("its SMILES has other atoms than its geometry")
        if self.options.keep_hydrogens and mol.GetNumAtoms() < full.GetNumAtoms():
            raise MoleculeError(LACKS_HYDROGENS)
        set_conformers(mol, without_drawings(positions))
        return Parsed(mol if self.options.keep_hydrogens else remove_hydrogens(mol)[0], y)

    def survey(self, path: Path) -> tuple[Facts, tuple[tuple[Label, ...], tuple[float, ...]]]:
        """Return what the first records show of a file: its labels and what is not read."""
        sample = first_records(path, load_dict, SAMPLE)
        count = max((np.size(entry["target"]) for entry in sample if _has_target(entry)), default=0)
        names = ["target"] if count == 1 else [f"target_{place}" for place in range(count)]
        labels, factors = all_or_none(path, tuple(map(Label, names)), self.options)
        others = dict.fromkeys(str(key) for entry in sample for key in entry if key not in FIELDS)
        left = dict.fromkeys(others, "no field of molecules that is read")
        if not labels and any("target" in entry for entry in sample):
            left["target"] = (
                "labels were not chosen" if count else f"missing in the first {SAMPLE} records"
            )
        fields = (("SMILES", "smi"), *(("label", label.name) for label in labels))
        return Facts(labels, taken=fields, left_out=tuple(left.items())), (labels, factors)


def _has_target(entry: dict[str, Any]) -> bool:
    """Return whether a record has a target that is not missing as a whole."""
    target = entry.get("target")
    return np.ndim(target) > 0 or not is_missing(target)


def _targets(entry: dict[str, Any], labels: tuple[Label, ...]) -> tuple[float, ...]:
    """Return the labels of a record, NaN where they are missing."""
    if not labels:
        return ()
    if not _has_target(entry):
        return (np.nan,) * len(labels)
    targets = np.ravel(np.asarray(entry["target"], object))
    if len(targets) != len(labels):
        raise MoleculeError(f"number of labels differs: {len(targets)}, expected {len(labels)}")
    try:
        return tuple(value_of(target) for target in targets)
    except (TypeError, ValueError):
        text = str(entry["target"])[:40]
        raise MoleculeError(f"label target is not a number: {text!r}") from None


def _required(entry: dict[str, Any], key: str) -> Any:
    if entry.get(key) is None:
        raise MoleculeError(f"the record has no {key!r} ({FIELDS[key]})")
    return entry[key]
