"""The vocabularies of atom and bond features: the values that their codes stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rdkit import Chem

# The vocabularies of the Open Graph Benchmark (Hu et al. 2020, ogb.utils.features). The last entry
# of a column stands for every value that the column does not list.
ATOM_VOCABULARY: dict[str, list] = {
    "atomic_num": [*range(1, 119), "misc"],
    "chirality": [
        "CHI_UNSPECIFIED",
        "CHI_TETRAHEDRAL_CW",
        "CHI_TETRAHEDRAL_CCW",
        "CHI_OTHER",
        "misc",
    ],
    "degree": [*range(11), "misc"],
    "formal_charge": [*range(-5, 6), "misc"],
    "num_hs": [*range(9), "misc"],
    "num_radical_electrons": [*range(5), "misc"],
    "hybridization": ["SP", "SP2", "SP3", "SP3D", "SP3D2", "misc"],
    "is_aromatic": [False, True],
    "is_in_ring": [False, True],
}
BOND_VOCABULARY: dict[str, list] = {
    "type": ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC", "misc"],
    "stereo": ["STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY"],
    "is_conjugated": [False, True],
}
ATOM_SIZES = [len(values) for values in ATOM_VOCABULARY.values()]
BOND_SIZES = [len(values) for values in BOND_VOCABULARY.values()]
# Columns of atom features, by the names above.
CHIRALITY, DEGREE, FORMAL_CHARGE, NUM_HS = map(
    [*ATOM_VOCABULARY].index, ("chirality", "degree", "formal_charge", "num_hs")
)
BOND_STEREO = [*BOND_VOCABULARY].index("stereo")
E_OR_Z = range(1, 5)  # codes of the labels of double bonds
LEAST_CHARGE: int = ATOM_VOCABULARY["formal_charge"][0]  # formal charge = code + LEAST_CHARGE

# Pseudo-asymmetric centres have lower-case letters. Models embed these codes as chirality tags.
CIP_LABELS = ["", "R", "S", "r", "s"]


class MoleculeError(ValueError):
    """A molecule that cannot be used; the message is the reason."""


# RDKit's values by name, for columns of enumerations; in the others numbers are their own names.
_NUMBERS = {number: number for number in range(256)}
_NAMES: dict[str, Mapping] = {
    "chirality": Chem.ChiralType.names,
    "formal_charge": {q: q % 256 for q in range(-128, 128)},
    "hybridization": Chem.HybridizationType.names,
    "type": Chem.BondType.names,
    "stereo": Chem.BondStereo.names,
}


def _codes() -> dict[str, bytes]:
    """Return a table of 256 bytes for each column: the code of each of RDKit's values."""
    codes = {}
    for column, values in (ATOM_VOCABULARY | BOND_VOCABULARY).items():
        of_column = bytearray([len(values) - 1] * 256)
        for name, value in _NAMES.get(column, _NUMBERS).items():
            if name in values:
                of_column[int(value)] = values.index(name)
        codes[column] = bytes(of_column)
    return codes


# Tables for bytes.translate, which encodes all values of a molecule at once.
CODES = _codes()


def atomic_weights() -> np.ndarray:
    """Return the standard atomic weights of Z = 0 (one, for no element) to 118, float64."""
    table = Chem.GetPeriodicTable()
    return np.array([1.0, *(table.GetAtomicWeight(z) for z in range(1, 119))])
