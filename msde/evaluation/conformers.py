"""Generated conformers against reference conformers: RMSD, coverage, geometry.

Protocol: heavy atoms only; the RMSD of two conformers is the least one over rotations, translations
and the symmetries of the molecule (`rdMolAlign.GetBestRMS`, as in Ganea et al. 2021 and Jing et al.
2022). Of K generated conformers and the references of one molecule,

    MAT-R = mean over references of min over generated of RMSD, in A,
    COV-R(d) = share of references for which that minimum is below d,

averaged over molecules. A molecule without any generated conformer counts zero in COV-R and does
not enter MAT-R. The RMSD of flexible molecules with wrong stereochemistry can be small, so
stereochemistry is counted separately, by `msde.chem.stereo`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign, rdMolTransforms

from msde.chem.clusters import MAX_MATCHES

THRESHOLDS = np.arange(0, 2.501, 0.125)  # A
DRAWN = 100  # bootstrap samples that are in memory together


def rmsd_matrix(generated: Chem.Mol, references: Chem.Mol) -> np.ndarray:
    """Return the RMSD of all pairs of conformers, (num_references, num_generated), A.

    It is the least over all symmetries, of which MAX_MATCHES are tried at most. Both molecules have
    the same heavy atoms in the same order. The RMSD of positions that are not finite is
    infinite.
    """
    generated, references = Chem.RemoveHs(generated), Chem.RemoveHs(references)
    out = np.full((references.GetNumConformers(), generated.GetNumConformers()), np.inf)
    for column, conformer in enumerate(generated.GetConformers()):
        if not np.isfinite(conformer.GetPositions()).all():
            continue
        for row, reference in enumerate(references.GetConformers()):
            out[row, column] = rdMolAlign.GetBestRMS(
                generated, references, conformer.GetId(), reference.GetId(), maxMatches=MAX_MATCHES
            )
    return out


@dataclass(frozen=True)
class Coverage:
    """MAT-R of each molecule, (num_molecules,) A, NaN without samples; COV-R at THRESHOLDS."""

    matching: np.ndarray
    coverage: np.ndarray  # (num_molecules, len(THRESHOLDS))


def coverage(matrices: Sequence[np.ndarray | None]) -> Coverage:
    """Return MAT-R and COV-R of molecules from their `rmsd_matrix`."""
    matching = np.full(len(matrices), np.nan)
    covered = np.zeros((len(matrices), len(THRESHOLDS)))
    for place, matrix in enumerate(matrices):
        if matrix is None or matrix.size == 0:
            continue
        nearest = matrix.min(axis=1)  # (num_references,)
        matching[place] = nearest.mean()
        covered[place] = (nearest[:, None] < THRESHOLDS).mean(axis=0)
    return Coverage(matching, covered)


def internal_coordinates(mol: Chem.Mol, conformer: int) -> dict[str, np.ndarray]:
    """Return the `lengths` of bonds in A, and the `angles` of bonds in degrees.

    They are of the atoms of `mol`, in an order that depends on the topology alone.
    """
    pos = mol.GetConformer(conformer)
    lengths = [
        rdMolTransforms.GetBondLength(pos, b.GetBeginAtomIdx(), b.GetEndAtomIdx())
        for b in mol.GetBonds()
    ]
    around = [sorted(n.GetIdx() for n in atom.GetNeighbors()) for atom in mol.GetAtoms()]
    angles = [
        rdMolTransforms.GetAngleDeg(pos, i, centre, k)
        for centre, neighbours in enumerate(around)
        for i, k in itertools.combinations(neighbours, 2)
    ]
    return {"lengths": np.array(lengths), "angles": np.array(angles)}


def paired_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of differences and its 95 % interval by 10,000 bootstrap samples.

    Those that are not finite are left out; without any others all three are NaN.
    """
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(0)
    blocks = (rng.choice(differences, (DRAWN, len(differences))) for _ in range(10_000 // DRAWN))
    means = np.concatenate([block.mean(axis=1) for block in blocks])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)
