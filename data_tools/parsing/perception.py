"""Bonds for molecules that come as atoms and positions only.

RDKit joins atoms that are near (rdDetermineBonds, Kim & Kim 2015, doi:10.1002/bkcs.10334), then
finds bond orders and charges that fit. Bond orders depend on what is joined and on the charge
alone, so they are found once for all frames of a trajectory.
"""

from __future__ import annotations

import functools

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError

from ..readers import Options, Parsed
from .chemistry import (
    assign_stereo,
    check_radicals,
    mol_with_bonds,
    remove_hydrogens,
    set_conformers,
)

MAX_ITERATIONS = 10_000  # of the search for bond orders; the molecules that need more are cages
MAX_ELEMENT = 118

Topology = tuple[bytes, tuple[tuple[int, int], ...], int]  # atomic numbers, bonds, charge


def connect(numbers: np.ndarray, position: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the pairs of atoms that are near enough to be bonded, (i, j) with i < j.

    Args:
        numbers: (num_atoms,) atomic numbers.
        position: (num_atoms, 3) in A.
    """
    if len(numbers) == 0:
        raise MoleculeError("no atoms")
    if numbers.min() < 1 or numbers.max() > MAX_ELEMENT:
        raise MoleculeError("atomic numbers that are not of elements")
    mol = mol_with_bonds(numbers, ())
    set_conformers(mol, position[None])
    try:
        rdDetermineBonds.DetermineConnectivity(mol)
    except (RuntimeError, ValueError) as error:
        raise MoleculeError(f"bonds cannot be perceived: {_first_line(error)}") from error
    pairs = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds())
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))


def perceive(numbers: np.ndarray, position: np.ndarray, charge: int = 0) -> Chem.Mol:
    """Return a molecule without conformers, its bonds found from one geometry.

    Raises:
        MoleculeError: no bond orders fit, or the atoms fall into several fragments.
    """
    return order_bonds(numbers, connect(numbers, position), charge)


def order_bonds(
    numbers: np.ndarray, bonds: tuple[tuple[int, int], ...], charge: int = 0
) -> Chem.Mol:
    """Return a sanitised molecule without conformers, given which atoms are joined.

    Raises:
        MoleculeError: no bond orders fit, or the atoms fall into several fragments.
    """
    found = _order_bonds((numbers.astype("u1").tobytes(), bonds, charge))
    if isinstance(found, str):
        raise MoleculeError(found)
    return Chem.Mol(found)


@functools.lru_cache(maxsize=256)
def _order_bonds(topology: Topology) -> Chem.Mol | str:
    """Return the molecule or, because failures are worth remembering too, the reason."""
    numbers, bonds, charge = topology
    mol = mol_with_bonds(np.frombuffer(numbers, "u1"), bonds)
    if len(Chem.GetMolFrags(mol)) > 1:
        return "perceived bonds leave several fragments"
    try:
        # The positions play no part where stereochemistry is left out, but have to be there.
        set_conformers(mol, np.zeros((1, mol.GetNumAtoms(), 3)))
        rdDetermineBonds.DetermineBondOrders(
            mol, charge=charge, embedChiral=False, maxIterations=MAX_ITERATIONS
        )
        mol = mol.GetMol()
        Chem.SanitizeMol(mol)
    except (RuntimeError, ValueError) as error:
        return f"bonds cannot be perceived: {_first_line(error)}"
    mol.RemoveAllConformers()
    return mol


def bonds_of_smiles(
    numbers: np.ndarray, bonds: tuple[tuple[int, int], ...], smiles: str
) -> Chem.Mol:
    """Return a molecule without conformers that has the bond orders and charges of a SMILES.

    The SMILES may list its atoms in another order and leave out hydrogens; it has to describe
    the same graph.

    Raises:
        MoleculeError: it is broken or describes another molecule.
    """
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    template = Chem.MolFromSmiles(smiles, parameters)
    if template is None:
        raise MoleculeError("its SMILES cannot be parsed")
    if 1 in numbers:
        template = Chem.AddHs(template)
    if sorted(a.GetAtomicNum() for a in template.GetAtoms()) != sorted(numbers.tolist()):
        raise MoleculeError("its SMILES has other atoms than its geometry")
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in template.GetBonds()]
    # Both as elements and lines: then a match says which atom of the SMILES is which.
    pattern = mol_with_bonds(np.array([a.GetAtomicNum() for a in template.GetAtoms()]), ends)
    match = mol_with_bonds(numbers, bonds).GetSubstructMatch(pattern)
    if len(bonds) != len(ends) or not match:
        raise MoleculeError("its SMILES has other bonds than its geometry")
    return Chem.RenumberAtoms(template, np.argsort(match).tolist())


def parsed_geometry(
    mol: Chem.Mol,
    positions: np.ndarray,
    options: Options,
    keep_hydrogens: bool,
    y: tuple[float, ...] = (),
    forces: np.ndarray | None = None,
    origin: Origin = Origin.BONDS_PERCEIVED,
) -> Parsed:
    """Put conformers on a molecule with all its hydrogens and finish it.

    Args:
        mol: bonds without conformers, as `perceive` and its kin return it.
        positions: (num_conformers, num_atoms, 3) in A, `forces` alike.
    """
    if not options.keep_radicals:
        check_radicals(mol)
    set_conformers(mol, positions)
    assign_stereo(mol)
    if not keep_hydrogens:
        mol, forces = remove_hydrogens(mol, forces)
    return Parsed(mol, y, forces, origin)


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
