"""Bemis-Murcko scaffolds, by which similar molecules are kept together in a split."""

from __future__ import annotations

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold


def scaffold_of(mol: Chem.Mol) -> str:
    """Return the SMILES of a molecule's scaffold, without stereo (Bemis and Murcko 1996).

    Hydrogens do not change it.

    A molecule without rings has none; its own SMILES without stereo is
    returned, so that its stereoisomers stay together.
    """
    mol = Chem.RemoveHs(mol)
    scaffold = MurckoScaffold.GetScaffoldForMol(mol)
    chosen = scaffold if scaffold.GetNumAtoms() else mol
    return Chem.MolToSmiles(chosen, isomericSmiles=False)
