"""RDKit molecules of readers: conformers, hydrogens, radicals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdqueries

from msde.chem import parsing
from msde.chem.conformers import add_conformers
from msde.chem.vocabulary import MoleculeError

_RADICAL = Chem.RWMol(Chem.MolFromSmarts("*"))  # matches atoms that have unpaired electrons
_RADICAL.ReplaceAtom(0, rdqueries.NumRadicalElectronsGreaterQueryAtom(0))
FLAT = 1e-6  # A; a conformer whose z are all below it is a drawing, if others are not
CARBON = 6
LACKS_HYDROGENS = "the geometry lacks hydrogens that its bonds imply"


def symbol_of(number: int) -> str:
    """Return the symbol of an element, whose atomic number may be one of NumPy's integers."""
    return Chem.GetPeriodicTable().GetElementSymbol(int(number))


def set_conformers(mol: Chem.Mol, positions: np.ndarray) -> None:
    """Replace the conformers of a molecule by positions, (num_conformers, num_atoms, 3) in A."""
    mol.RemoveAllConformers()
    if not np.isfinite(positions).all():
        raise MoleculeError("coordinates that are not finite numbers")
    add_conformers(mol, positions)


def assign_stereo(mol: Chem.Mol) -> None:
    """Take stereochemistry from the first conformer, and from nothing else."""
    Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)


def remove_hydrogens(
    mol: Chem.Mol, forces: np.ndarray | None = None
) -> tuple[Chem.Mol, np.ndarray | None]:
    """Remove hydrogens, and the forces on them, (num_conformers, num_atoms, 3).

    RDKit keeps some: those of H2, and those that make a double bond E or Z, as in an imine. So do
    the forces.
    """
    if forces is None:
        return parsing.remove_hydrogens(mol), None
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetIntProp("_place", atom.GetIdx())
    mol = parsing.remove_hydrogens(mol)
    kept = [atom.GetIntProp("_place") for atom in mol.GetAtoms()]
    for atom in mol.GetAtoms():
        atom.ClearProp("_place")
    return mol, forces[:, kept]


def check_radicals(mol: Chem.Mol) -> None:
    """Reject unpaired electrons; where bonds came from positions they mark a wrong bond."""
    if mol.HasSubstructMatch(_RADICAL):  # much faster than to ask every atom
        count = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
        raise MoleculeError(f"radical: {count} unpaired electrons, mostly a sign of wrong bonds")


def check_complete(mol: Chem.Mol, num_atoms: int, keep_hydrogens: bool) -> None:
    """Reject a geometry that has some hydrogens and lacks others, or lacks any if they are kept.

    One that has all but those of carbon (of a docking program) is taken if they are removed.

    Args:
        mol: with or without its hydrogens.
        num_atoms: how many atoms its geometry has in the file.
    """
    implied = implied_hydrogens(mol)
    present = num_atoms - mol.GetNumAtoms()  # hydrogens that were there and have been removed
    if implied == present:
        return
    # Hydrogens that RDKit does not remove, as those of an imine, do not count as present; nor do
    # isotopes, which are drawn where other hydrogens are not.
    present -= parsing.num_removed_isotopes(mol)
    polar = sum(atom.GetTotalNumHs() for atom in mol.GetAtoms() if atom.GetAtomicNum() != CARBON)
    if keep_hydrogens or present not in (0, polar) or mol.GetNumHeavyAtoms() == 0:
        raise MoleculeError(LACKS_HYDROGENS)


def implied_hydrogens(mol: Chem.Mol) -> int:
    """Count the hydrogens that the bonds imply and that are no atoms."""
    return mol.GetNumAtoms(onlyExplicit=False) - mol.GetNumAtoms()


def is_drawing(mol: Chem.Mol) -> bool:
    """Return whether the first conformer of a molecule is a flat drawing, not a geometry."""
    return mol.GetNumConformers() > 0 and not mol.GetConformer().Is3D()


def without_drawings(positions: np.ndarray) -> np.ndarray:
    """Omit conformers that are flat drawings, unless all are."""
    solid = np.abs(positions[:, :, 2]).max(axis=1) > FLAT
    return positions[solid] if solid.any() else positions


def merge_conformers(
    mols: Sequence[Chem.Mol], places: Sequence[int]
) -> tuple[Chem.Mol, tuple[tuple[int, str], ...]]:
    """Merge molecules with the same atoms in the same order into one with many conformers.

    Those that differ from the first molecule, stereochemistry included, are omitted.

    Args:
        places: the lines or numbers of the conformers, for reasons.

    Returns:
        The molecule, and (place, reason) for each omitted conformer.
    """
    first = Chem.Mol(mols[0])
    atoms, bonds, smiles = _atoms(first), _bonds(first), Chem.MolToSmiles(first)
    dropped = []
    for mol, place in zip(mols[1:], places[1:], strict=True):
        if _atoms(mol) != atoms or _bonds(mol) != bonds:
            dropped.append((place, "conformer: atoms or bonds differ from the first's"))
        elif Chem.MolToSmiles(mol) != smiles:
            dropped.append((place, "conformer: isomeric SMILES differs from the first's"))
        else:
            for conformer in mol.GetConformers():
                first.AddConformer(conformer, assignId=True)
    return first, tuple(dropped)


def agreeing_conformers(
    mol: Chem.Mol, positions: np.ndarray
) -> tuple[Chem.Mol, tuple[tuple[int, str], ...]]:
    """Give a molecule those of its conformers that have the stereochemistry of the first.

    Args:
        mol: bonds and no conformers.
        positions: (num_conformers, num_atoms, 3) in A.
    """
    kept, dropped, first = [], [], None
    for number, place in enumerate(positions, start=1):
        single = Chem.Mol(mol)
        set_conformers(single, place[None])
        assign_stereo(single)
        if first is None:
            first = single
        if _stereo(single) == _stereo(first):
            kept.append(place)
        else:
            dropped.append((number, "conformer: stereochemistry differs from the first's"))
    if first is None:
        raise MoleculeError("no 3D conformer")
    set_conformers(first, np.stack(kept))
    return first, tuple(dropped)


def mol_with_bonds(numbers: np.ndarray, bonds: Sequence[tuple[int, int]]) -> Chem.RWMol:
    """Build an unsanitised molecule of atoms that are joined by single bonds."""
    mol = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in bonds:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    return mol


def _atoms(mol: Chem.Mol) -> list[int]:
    return [atom.GetAtomicNum() for atom in mol.GetAtoms()]


def _bonds(mol: Chem.Mol) -> set[tuple[int, int]]:
    ends = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds())
    return {(min(pair), max(pair)) for pair in ends}


def _stereo(mol: Chem.Mol) -> tuple:
    atoms = tuple(atom.GetChiralTag() for atom in mol.GetAtoms())
    return atoms, tuple(bond.GetStereo() for bond in mol.GetBonds())
