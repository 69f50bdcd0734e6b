"""Labels that came out wrong: double bonds, centres and axes that are found, bonds turned."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rdkit import Chem

from msde.chem.stereo import TETRAHEDRAL, axes, signed_volume

_CIS = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
_TRANS = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)


def wrong_bonds(mol: Chem.Mol, pos: np.ndarray) -> list[Chem.Bond]:
    """Return the double bonds, those in rings included, whose positions have the other label.

    Args:
        mol: its double bonds have labels and their stereo atoms, as RDKit assigns them.
        pos: (num_atoms, 3).
    """
    wrong = []
    for bond in mol.GetBonds():
        if bond.GetStereo() not in (*_CIS, *_TRANS) or len(bond.GetStereoAtoms()) != 2:
            continue
        first, last = bond.GetStereoAtoms()
        side = _side(pos, first, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), last)
        if (side > 0) != (bond.GetStereo() in _CIS):
            wrong.append(bond)
    return wrong


def turn_bonds(mol: Chem.Mol, pos: np.ndarray, bonds: Iterable[Chem.Bond]) -> np.ndarray:
    """Return positions with one side of each of these bonds turned by 180 degrees.

    The smaller side turns about the bond. A bond in a ring cannot be turned and is left as it is.
    The geometry around a turned bond is rough: it is a start for a sampler, not a conformer.

    Args:
        pos: (num_atoms, 3).

    Returns:
        (num_atoms, 3).
    """
    turned = pos.copy()
    for bond in bonds:
        if bond.IsInRing():
            continue
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        side = _beyond(mol, i, j)
        if 2 * len(side) > mol.GetNumAtoms():
            i, j = j, i
            side = _beyond(mol, i, j)
        axis = turned[j] - turned[i]
        axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
        arms = turned[side] - turned[i]
        turned[side] = turned[i] + 2 * (arms @ axis)[:, None] * axis - arms
    return turned


def inverts(mol: Chem.Mol, pos: np.ndarray, right: np.ndarray) -> bool:
    """Return whether a labelled centre, or axis of a single bond, is the mirror image of `right`'s.

    Args:
        pos, right: (num_atoms, 3); the labels of `right` are those of the molecule.
    """
    for atom in mol.GetAtoms():
        around = [neighbour.GetIdx() for neighbour in atom.GetNeighbors()]
        if atom.GetChiralTag() in TETRAHEDRAL and len(around) >= 3:
            one, other = (signed_volume(x, atom.GetIdx(), around) for x in (pos, right))
            if one * other < 0:
                return True
    return any(_twist(pos, bond) * _twist(right, bond) < 0 for bond in axes(mol))


def _twist(pos: np.ndarray, bond: Chem.Bond) -> float:
    """Return a number with the sign of the dihedral of one neighbour on each side of a bond."""
    ends = bond.GetBeginAtom(), bond.GetEndAtom()
    i, j = (end.GetIdx() for end in ends)
    first, last = (
        next(n.GetIdx() for n in end.GetNeighbors() if n.GetIdx() not in (i, j)) for end in ends
    )
    return float(np.linalg.det([pos[first] - pos[i], pos[j] - pos[i], pos[last] - pos[j]]))


def _side(pos: np.ndarray, first: int, i: int, j: int, last: int) -> float:
    """Return a number that is positive where `first` and `last` lie on one side of the bond."""
    axis = pos[j] - pos[i]
    a, b = np.cross(pos[first] - pos[i], axis), np.cross(pos[last] - pos[j], axis)
    return float(a @ b)


def _beyond(mol: Chem.Mol, i: int, j: int) -> list[int]:
    """Return the atoms on j's side of the bond between i and j, which is in no ring."""
    found, seen = [j], {i, j}
    for atom in found:
        for neighbour in mol.GetAtomWithIdx(atom).GetNeighbors():
            if neighbour.GetIdx() not in seen:
                seen.add(neighbour.GetIdx())
                found.append(neighbour.GetIdx())
    return found
