"""Molecules that two data sets share, by the first block of their InChIKeys: the 2D graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import plain_mol
from msde.data.shards import ShardDataset


def blocks_of(mols: Iterable[Chem.Mol | None]) -> list[str]:
    """Return the first block of each InChIKey, "" where there is none."""
    silence_rdkit()
    return [Chem.MolToInchiKey(mol)[:14] if mol is not None else "" for mol in mols]


def blocks_of_data_sets(roots: Iterable[Path]) -> set[str]:
    """Return the first blocks of all molecules of folders of shards."""
    found: set[str] = set()
    for root in roots:
        found |= set(blocks_of(map(plain_mol, ShardDataset(root).records())))
    return found - {""}


def overlapping(blocks: Iterable[str], known: set[str]) -> np.ndarray:
    """Return which of the molecules with these blocks are among the known ones, (rows,) bool."""
    return np.array([block in known for block in blocks])
