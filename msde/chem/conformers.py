"""Conformers by distance geometry (ETKDGv3) and a force field (MMFF94)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from msde.chem.vocabulary import MoleculeError

FRAGMENT_GAP = 3.0  # A, between fragments of a salt before MMFF moves them
RELAX_STEPS = 200  # of MMFF94 at most


def add_conformers(mol: Chem.Mol, positions: Sequence[np.ndarray] | np.ndarray) -> None:
    """Add conformers to a molecule, whatever their numbers are.

    Args:
        positions: (num_conformers, num_atoms, 3) A.
    """
    for pos in positions:
        conformer = Chem.Conformer(len(pos))
        conformer.SetPositions(np.ascontiguousarray(pos, np.float64))
        mol.AddConformer(conformer, assignId=True)


def embed_conformer(mol: Chem.Mol, seed: int, keep_hydrogens: bool = False) -> Chem.Mol:
    """Return the molecule with one conformer; see `embed_conformers`."""
    return embed_conformers(mol, seed, 1, keep_hydrogens)


def embed_conformers(
    mol: Chem.Mol,
    seed: int,
    count: int,
    keep_hydrogens: bool = False,
    notes: list[str] | None = None,
) -> Chem.Mol:
    """Return the molecule with conformers by ETKDGv3 (Wang et al. 2020) and MMFF94.

    Iterations are limited, not time, so that the result depends on the seed alone. Molecules
    without MMFF parameters keep the geometry of ETKDGv3. There may be fewer conformers than
    `count`, where some cannot be embedded.

    Args:
        notes: gets a line for either.

    Raises:
        MoleculeError: no conformer was found, or RDKit failed on the molecule.
    """
    try:
        full = Chem.AddHs(mol)
        made = len(embed(full, count, seed))
        if not made:
            raise MoleculeError("no conformer found")
        _set_fragments_apart(full)
        is_rough = relax(full) is None and full.GetNumAtoms() > 1
        if notes is not None and is_rough:
            notes.append("MMFF94 lacks parameters: geometry of ETKDGv3 alone")
        if notes is not None and made < count:
            notes.append(f"fewer conformers: {made} of {count}")
        return full if keep_hydrogens else Chem.RemoveHs(full)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, MoleculeError):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise MoleculeError(f"RDKit failed: {first.strip()}") from error


def embed(mol: Chem.Mol, count: int, seed: int) -> list[int]:
    """Give a molecule with hydrogens up to `count` conformers by ETKDGv3; return their ids."""
    parameters: Any = rdDistGeom.ETKDGv3()  # its stubs have wrong types
    parameters.randomSeed = max(1, seed & 0x7FFFFFFF)  # of 0 RDKit makes one conformer many times
    parameters.maxIterations = 20
    ids = list(rdDistGeom.EmbedMultipleConfs(mol, count, parameters))
    if not ids:
        parameters.useRandomCoords = True
        ids = list(rdDistGeom.EmbedMultipleConfs(mol, count, parameters))
    return ids


def relax(mol: Chem.Mol, notes: list[str] | None = None) -> list[float] | None:
    """Relax all conformers by MMFF94, for RELAX_STEPS at most.

    Args:
        notes: gets a line if these were too few for some conformers.

    Returns:
        The energy of each in kcal/mol; None, with nothing done, if MMFF94 lacks parameters.
    """
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        return None
    relaxed = Chem.Mol(mol)  # a copy, since MMFF writes its own aromaticity into it
    found = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(
        relaxed, numThreads=1, maxIters=RELAX_STEPS
    )
    for mine, its in zip(mol.GetConformers(), relaxed.GetConformers(), strict=True):
        mine.SetPositions(its.GetPositions())
    stopped = sum(is_unfinished != 0 for is_unfinished, _ in found)
    if notes is not None and stopped:
        many = f"{stopped} of {len(found)} conformers"
        notes.append(f"not fully relaxed: MMFF94 stopped after {RELAX_STEPS} steps in {many}")
    return [energy for _, energy in found]


def _set_fragments_apart(mol: Chem.Mol) -> None:
    """Place the fragments of a salt side by side; RDKit embeds them all at the origin."""
    fragments = [list(fragment) for fragment in Chem.GetMolFrags(mol)]
    if len(fragments) == 1:
        return
    for conformer in mol.GetConformers():
        pos = conformer.GetPositions()  # (num_atoms, 3)
        edge = -FRAGMENT_GAP
        for fragment in fragments:
            pos[fragment] -= pos[fragment].mean(0)
            pos[fragment, 0] += edge + FRAGMENT_GAP - pos[fragment, 0].min()
            edge = pos[fragment, 0].max()
        conformer.SetPositions(pos)
