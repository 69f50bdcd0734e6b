"""Whether conformers are physically plausible, by PoseBusters (Buttenschoen et al. 2024)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from rdkit import Chem

from msde.errors import MsdeError


def check_installed() -> None:
    """Raise an MsdeError unless posebusters is installed."""
    if importlib.util.find_spec("posebusters") is None:
        raise MsdeError("--posebusters needs posebusters: pip install 'msde[evaluate]'")


def plausible(mols: Sequence[Chem.Mol]) -> list[bool]:
    """Return whether the first conformer of each molecule, with hydrogens, passes all checks.

    They are the checks of a molecule alone: bond lengths and angles, clashes, flat rings and double
    bonds, and an energy near that of other conformers.

    Raises:
        MsdeError: posebusters is not installed.
    """
    check_installed()
    from posebusters import PoseBusters

    first = [Chem.Mol(mol, confId=mol.GetConformers()[0].GetId()) for mol in mols]
    table = PoseBusters(config="mol").bust(first)
    return table.all(axis=1).tolist()
