"""Bonds found from geometries against the true ones: exact graphs, and F1 of bonds.

Protocol: all methods get the same atoms (with hydrogens, if the reference has them), the same
positions and the true total charge. Noise is isotropic, of one standard deviation for all atoms.

    exact match   the share of molecules whose canonical SMILES, without stereochemistry and
                  hydrogens, is that of the reference; both are written, read and written again
    F1            of the set of bonded pairs (i, j), hydrogens included, over all molecules
                  together; with orders a pair counts if its type (single, double, triple,
                  aromatic as RDKit perceives it) is right, too

A method that gives no molecule, or takes more than TIME_LIMIT, misses all bonds of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

TIME_LIMIT = 5.0  # s for a molecule


def graph_smiles(mol: Chem.Mol) -> str:
    """Return the canonical SMILES without stereochemistry and hydrogens, "" if RDKit fails."""
    try:
        text = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        again = Chem.MolFromSmiles(text)
    except ValueError:
        return ""
    return "" if again is None else Chem.MolToSmiles(again)


@dataclass(frozen=True)
class BondScores:
    """How well bonds agree with the true ones."""

    is_exact: np.ndarray  # (num_molecules,) bool
    has_failed: np.ndarray  # (num_molecules,) bool: no molecule was given
    f1: float
    f1_with_orders: float

    @property
    def exact(self) -> float:
        """The share of exact graphs."""
        return float(self.is_exact.mean())


def compare_graphs(found: Sequence[Chem.Mol | None], references: Sequence[Chem.Mol]) -> BondScores:
    """Compare molecules with references that have the same atoms in the same order."""
    exact = []
    right = np.zeros(2)  # pairs, and pairs with the right type
    given = true = 0
    for mol, reference in zip(found, references, strict=True):
        expected = _bonds(reference)
        own = {} if mol is None else _bonds(mol)
        wanted = graph_smiles(reference)
        exact.append(mol is not None and wanted != "" and graph_smiles(mol) == wanted)
        right += len(own.keys() & expected.keys()), len(own.items() & expected.items())
        given, true = given + len(own), true + len(expected)
    f1 = 2 * right / max(1, given + true)
    failed = np.array([mol is None for mol in found])
    return BondScores(np.array(exact), failed, *f1.tolist())


def _bonds(mol: Chem.Mol) -> dict[tuple[int, int], Chem.BondType]:
    """Return the type of each bond by its pair of atoms, the smaller first."""
    ends = ((b.GetBeginAtomIdx(), b.GetEndAtomIdx(), b.GetBondType()) for b in mol.GetBonds())
    return {(min(i, j), max(i, j)): kind for i, j, kind in ends}
