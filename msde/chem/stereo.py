"""CIP labels of stereocentres and double bonds: those of a molecule and those of its conformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdCIPLabeler

TETRAHEDRAL = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_AXIS = (Chem.BondStereo.STEREOATROPCW, Chem.BondStereo.STEREOATROPCCW)
FLAT = 0.1  # A^3; RDKit, too, gives atoms of less volume no label
CIP_ITERATIONS = 1_250_000  # recommended by RDKit: takes less than a second
NOT_CHECKED = "not checked: CIP labels take too long"


@dataclass(frozen=True)
class StereoCount:
    """How many labelled stereocentres and double bonds have the right label.

    Axes of hindered single bonds, M or P, count among the centres.
    """

    centres_right: int = 0
    centres: int = 0
    bonds_right: int = 0
    bonds: int = 0
    differences: str = ""  # the labels that are wrong, in words

    def __add__(self, other: StereoCount) -> StereoCount:
        return StereoCount(
            self.centres_right + other.centres_right,
            self.centres + other.centres,
            self.bonds_right + other.bonds_right,
            self.bonds + other.bonds,
            "; ".join(filter(None, (self.differences, other.differences))),
        )

    @property
    def is_right(self) -> bool:
        """Whether no label is wrong."""
        return self.centres_right == self.centres and self.bonds_right == self.bonds


@contextlib.contextmanager
def legacy_perception() -> Iterator[None]:
    """Let RDKit perceive stereochemistry as by default, whatever the process has chosen.

    Double bonds are then E or Z, and atoms have the property `_CIPRank`. The other way they are cis
    or trans with respect to two atoms, which records do not hold. RDKit has one choice for the
    whole process: other threads follow it, too.
    """
    was_legacy = Chem.GetUseLegacyStereoPerception()
    Chem.SetUseLegacyStereoPerception(True)
    try:
        yield
    finally:
        Chem.SetUseLegacyStereoPerception(was_legacy)


def assign_cip(mol: Chem.Mol) -> bool:
    """Write CIP labels into a molecule; return False where they take too long to find.

    The algorithm takes exponential time for some cages.
    """
    try:
        rdCIPLabeler.AssignCIPLabels(mol, maxRecursiveIterations=CIP_ITERATIONS)
    except RuntimeError:
        return False
    return True


def stereo_of(mol: Chem.Mol) -> dict[str, str]:
    """Return the CIP labels of a molecule's atoms and double bonds, by their names in words.

    There are none where they take too long to find; `assign_cip` tells.
    """
    mol = Chem.Mol(mol)
    if not assign_cip(mol):
        return {}
    parts = [(f"atom {a.GetIdx()}", a) for a in mol.GetAtoms()]
    parts += [(f"bond {b.GetBeginAtomIdx()}-{b.GetEndAtomIdx()}", b) for b in mol.GetBonds()]
    return {name: part.GetProp("_CIPCode") for name, part in parts if part.HasProp("_CIPCode")}


def stereo_of_conformer(mol: Chem.Mol, conformer: int) -> dict[str, str]:
    """Return the labels that the positions of one conformer have, whatever the molecule's own."""
    copy = Chem.Mol(mol, confId=conformer)
    Chem.RemoveStereochemistry(copy)
    Chem.AssignStereochemistryFrom3D(copy, copy.GetConformer().GetId(), replaceExistingTags=True)
    _tag_lone_pairs(mol, copy)
    return stereo_of(copy)


def _tag_lone_pairs(labelled: Chem.Mol, mol: Chem.Mol) -> None:
    """Tag labelled atoms that RDKit leaves out, as P with three neighbours, by positions."""
    pos = mol.GetConformer().GetPositions()
    for atom in labelled.GetAtoms():
        here = mol.GetAtomWithIdx(atom.GetIdx())
        around = [neighbour.GetIdx() for neighbour in here.GetNeighbors()]
        is_missing = here.GetChiralTag() not in TETRAHEDRAL and atom.GetChiralTag() in TETRAHEDRAL
        if is_missing and len(around) == 3:
            volume = signed_volume(pos, here.GetIdx(), around)
            if abs(volume) > FLAT:
                here.SetChiralTag(TETRAHEDRAL[int(volume > 0)])


def signed_volume(pos: np.ndarray, centre: int, around: list[int]) -> float:
    """Return the signed volume of an atom's first neighbours, whose sign is the chirality, A^3."""
    origin = pos[around[3]] if len(around) > 3 else pos[centre]
    return float(np.linalg.det(pos[around[:3]] - origin))


def count_stereo(
    mol: Chem.Mol, conformer: int, expected: dict[str, str] | None = None
) -> StereoCount:
    """Compare the labels of a molecule with those of one of its conformers.

    A centre with fewer than three neighbours, as a phosphine without its hydrogen, is not counted.

    Args:
        expected: `stereo_of` the molecule, where it is known.
    """
    expected = stereo_of(mol) if expected is None else expected
    few = {f"atom {atom.GetIdx()}" for atom in mol.GetAtoms() if atom.GetDegree() < 3}
    expected = {place: label for place, label in expected.items() if place not in few}
    if not expected:
        return StereoCount()
    found = stereo_of_conformer(mol, conformer)
    wrong = {place: label for place, label in expected.items() if found.get(place) != label}
    bonds, wrong_bonds = (sum(map(_is_e_or_z, labels.values())) for labels in (expected, wrong))
    centres, wrong_centres = len(expected) - bonds, len(wrong) - wrong_bonds
    texts = [
        f"{place} is {found.get(place) or 'without label'}, not {label}"
        for place, label in wrong.items()
    ]
    return StereoCount(
        centres - wrong_centres, centres, bonds - wrong_bonds, bonds, "; ".join(texts)
    )


def _is_e_or_z(label: str) -> bool:
    """Return whether a CIP label is that of a double bond; M and P are of single ones."""
    return label.lower() in ("e", "z")


def axes(mol: Chem.Mol) -> list[Chem.Bond]:
    """Return the single bonds of hindered rotation that are labelled M or P."""
    return [bond for bond in mol.GetBonds() if bond.GetStereo() in _AXIS]
