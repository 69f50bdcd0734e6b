"""A few conformers that stand for many.

Conformers are clustered by RMSD, and the medoids of the clusters are returned (Zhou et al. 2023,
arXiv:2302.07061, who clustered RDKit's conformers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from msde.chem.stereo import count_stereo, stereo_of

# Symmetries that are tried, in less than 0.1 s. Four CF3 groups make 10,368, four tBu groups more.
MAX_MATCHES = 20_000
KT = 1.0  # kcal/mol, of the weights; 0.6, which is that of 300 K, and 2 choose as well
TIE = 1e-4  # A; the first of medoids that differ by less is taken, so that rounding is not seen
ENERGY_TIE = 0.01  # kcal/mol, likewise


def representatives(mol: Chem.Mol, num: int, energies: Sequence[float] | None = None) -> list[int]:
    """Return the ids of up to `num` conformers that stand for all, the best first.

    They are medoids, chosen greedily (the first part of PAM, Kaufman and Rousseeuw 1990): each is
    the conformer that lowers most the mean RMSD from all conformers to the nearest chosen one. RMSD
    is that of heavy atoms over all symmetries, MAX_MATCHES at most. With energies the mean has
    Boltzmann's weights, and the conformer of the lowest energy is the first. The first ones of many
    are those of few. Conformers whose stereochemistry is not as labelled come after all others,
    those with positions or an energy that is not finite last.

    Args:
        energies: of each conformer, kcal/mol; None: they are not known.
    """
    heavy = Chem.RemoveHs(mol)
    ids = ids_of(heavy)
    expected = stereo_of(heavy)
    classes: list[list[int]] = [[], [], []]  # places of right, wrong and broken conformers
    for place, number in enumerate(ids):
        energy = 0.0 if energies is None else energies[place]
        if not np.isfinite([*heavy.GetConformer(number).GetPositions().flat, energy]).all():
            classes[2].append(place)
        else:
            is_right = not expected or count_stereo(heavy, number, expected).is_right
            classes[0 if is_right else 1].append(place)
    chosen: list[int] = []
    for places in classes[:2]:
        wanted = min(num - len(chosen), len(places))
        if wanted:
            distances = _rmsd_between(heavy, [ids[place] for place in places])
            own = None if energies is None else np.asarray(energies)[places]
            chosen += [places[k] for k in _medoids(distances, own, wanted)]
    chosen += classes[2][: num - len(chosen)]
    return [ids[place] for place in chosen]


def ids_of(mol: Chem.Mol) -> list[int]:
    """Return the ids of a molecule's conformers, in their order."""
    return [conformer.GetId() for conformer in mol.GetConformers()]


def with_conformers(mol: Chem.Mol, ids: Sequence[int]) -> Chem.Mol:
    """Return a copy of a molecule with these of its conformers, in this order, numbered anew."""
    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    for number in ids:
        copy.AddConformer(mol.GetConformer(number), assignId=True)
    return copy


def _rmsd_between(mol: Chem.Mol, ids: list[int]) -> np.ndarray:
    """Return the RMSD of each two of these conformers, (len(ids), len(ids)) A."""
    distances = np.zeros((len(ids), len(ids)))
    if len(ids) > 1:
        below = np.tril_indices(len(ids), -1)
        part = with_conformers(mol, ids)
        distances[below] = rdMolAlign.GetAllConformerBestRMS(part, maxMatches=MAX_MATCHES)
    return distances + distances.T


def _medoids(distances: np.ndarray, energies: np.ndarray | None, num: int) -> list[int]:
    """Choose medoids one after another.

    Args:
        distances: (num_conformers, num_conformers) A.
        energies: (num_conformers,) kcal/mol.
    """
    weights, chosen = np.ones(len(distances)), []
    nearest = np.full(len(distances), np.inf)  # to the nearest medoid
    if energies is not None:
        above = energies - energies.min()
        weights = np.exp(-above / KT)
        chosen = [int(np.flatnonzero(above <= ENERGY_TIE)[0])]
        nearest = distances[:, chosen[0]]
    weights = weights / weights.sum()
    while len(chosen) < num:
        cost = weights @ np.minimum(nearest[:, None], distances)  # with one more, for each
        cost[chosen] = np.inf
        chosen.append(int(np.flatnonzero(cost <= cost.min() + TIE)[0]))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    return chosen
