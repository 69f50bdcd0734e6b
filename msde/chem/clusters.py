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

MAX_MATCHES = 2000  # symmetries that are tried
SPREAD = 2.0  # kcal/mol, kT of the weights; MMFF94's energies are off by about as much
TIE = 1e-4  # A; the first of medoids that differ by less is taken, so that rounding is not seen


def representatives(mol: Chem.Mol, num: int, energies: Sequence[float] | None = None) -> list[int]:
    """Return the ids of up to `num` conformers that stand for all, the best first.

    They are medoids, chosen greedily (the first step of PAM, Kaufman and Rousseeuw 1990): each is
    the conformer that lowers most the mean RMSD from all conformers to the nearest chosen one. The
    first ones of many are therefore those of few. RMSD is that of heavy atoms over all symmetries.
    Conformers whose stereochemistry is not as labelled come after all others, those with positions
    that are not finite last.

    Args:
        energies: of each conformer, kcal/mol; the mean then has Boltzmann's weights with kT SPREAD.
            None: equal weights.
    """
    heavy = Chem.RemoveHs(mol)
    ids = ids_of(heavy)
    expected = stereo_of(heavy)
    classes: list[list[int]] = [[], [], []]  # places of right, wrong and broken conformers
    for place, number in enumerate(ids):
        if not np.isfinite(heavy.GetConformer(number).GetPositions()).all():
            classes[2].append(place)
        else:
            is_right = not expected or count_stereo(heavy, number, expected).is_right
            classes[0 if is_right else 1].append(place)
    scale = np.zeros(len(ids)) if energies is None else np.asarray(energies) / SPREAD
    chosen: list[int] = []
    for places in classes[:2]:
        wanted = min(num - len(chosen), len(places))
        if wanted:
            distances = _rmsd_between(heavy, [ids[place] for place in places])
            weights = np.exp(scale[places].min() - scale[places])
            chosen += [places[k] for k in _medoids(distances, weights, wanted)]
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


def _medoids(distances: np.ndarray, weights: np.ndarray, num: int) -> list[int]:
    """Choose medoids one after another.

    Args:
        distances: (num_conformers, num_conformers).
        weights: (num_conformers,), the largest is 1.
    """
    weights = weights / weights.sum()
    nearest = np.full(len(weights), np.inf)  # distance to the nearest medoid
    chosen: list[int] = []
    for _ in range(num):
        cost = weights @ np.minimum(nearest[:, None], distances)  # with one more, for each
        cost[chosen] = np.inf
        medoid = int(np.flatnonzero(cost <= cost.min() + TIE)[0])
        chosen.append(medoid)
        nearest = np.minimum(nearest, distances[:, medoid])
    return chosen
