"""What is drawn of sampled conformers: over their references, and on the way from noise."""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from msde.evaluation.conformers import MAX_MATCHES
from msde.monitor.pictures import Cell, Structure


def structure_of(mol: Chem.Mol, pos: np.ndarray | None = None) -> Structure:
    """Return the atoms and bonds of a molecule.

    Args:
        pos: (num_atoms, 3) A; None: those of its first conformer.
    """
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()], int)
    pos = mol.GetConformer().GetPositions() if pos is None else pos
    return Structure(numbers, pos, bonds.reshape(-1, 2))


def overlay(reference: Chem.Mol, pos: np.ndarray) -> Cell:
    """Return a sample superposed on the first conformer of a molecule, with their RMSD as title.

    Args:
        reference: without hydrogens.
        pos: (num_atoms, 3) A of the sample.
    """
    sample = Chem.Mol(reference)
    sample.GetConformer().SetPositions(pos.astype(np.float64))
    rmsd = rdMolAlign.GetBestRMS(sample, reference, maxMatches=MAX_MATCHES)  # moves the sample
    return Cell(structure_of(sample), f"{rmsd:.2f} A", structure_of(reference))
