"""MoleculeRecord, one molecule as plain arrays, made of RDKit molecules."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from msde.chem.conformers import embed_conformer
from msde.chem.features import features_from_mol
from msde.chem.parsing import (
    axis_notes,
    forget_isotopes,
    mol_from_smiles,
    remove_hydrogens,
    stereo_note,
)
from msde.chem.stereo import assign_cip
from msde.chem.vocabulary import (
    ATOM_VOCABULARY,
    BOND_VOCABULARY,
    CHIRALITY,
    CIP_LABELS,
    MoleculeError,
)

MAX_ATOMS = 1024  # of a molecule for inference: time and memory grow with the pairs of atoms

# The code of "misc" in each column of x, or 255. That of hybridisations is common (every s orbital)
# and not reported.
_MISC_BOND = BOND_VOCABULARY["type"].index("misc")
_MISC = np.array(
    [
        len(values) - 1 if values[-1] == "misc" and name != "hybridization" else 255
        for name, values in ATOM_VOCABULARY.items()
    ],
    "u1",
)


class Origin(enum.IntFlag):
    """Flags of what was added to a molecule that its source does not hold."""

    SOURCE = 0
    BONDS_PERCEIVED = 1  # RDKit found the bonds from the positions
    CONFORMERS_MADE = 2  # RDKit embedded the conformers
    NO_GEOMETRY = 4  # there is no conformer: all positions are zero


@dataclass(frozen=True)
class MoleculeRecord:
    """One molecule as plain arrays; bonds are stored once, first atom smaller.

    `uid` never changes: it keys shuffling, splits and noise.
    """

    uid: int
    name: str
    z: np.ndarray  # (num_atoms,) u1, atomic numbers, H = 1
    x: np.ndarray  # (num_atoms, 9) u1, codes of ATOM_VOCABULARY
    cip: np.ndarray  # (num_atoms,) u1, codes of CIP_LABELS
    bond_index: np.ndarray  # (num_bonds, 2) u2
    bond_attr: np.ndarray  # (num_bonds, 3) u1, codes of BOND_VOCABULARY
    extended_source: np.ndarray  # (num_extended,) u2, by target: atoms up to MAX_HOPS bonds away
    extended_degree: np.ndarray  # (num_atoms,) u2, how many of them each target has
    pos: np.ndarray  # (num_conformers, num_atoms, 3) f4, A, each conformer centred at its mean
    forces: np.ndarray  # (num_conformers, num_atoms, 3) f4, in the data set's unit, or (0, ...)
    y: np.ndarray  # (num_labels,) f8, NaN where missing; names and units are the data set's
    origin: Origin = Origin.SOURCE


def molecule_uid(source: str, position: int | str) -> int:
    """Return the stable 64-bit id of the molecule at one position of one source file."""
    digest = hashlib.sha256(f"{source}\0{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def smiles_uid(mol: Chem.Mol) -> int:
    """Return the id of a molecule by its canonical SMILES without hydrogens.

    It seeds the conformers, whose heavy atoms so are the same whether hydrogens are kept or not.
    """
    return molecule_uid("", Chem.MolToSmiles(remove_hydrogens(mol)))


def cip_codes(mol: Chem.Mol, tagged: Sequence[int], notes: list[str]) -> np.ndarray:
    """Write CIP labels into a molecule; return their codes, (num_atoms,) u1, 0 unless `tagged`.

    Of a cage, for which the algorithm takes exponential time, all are 0; `notes` says so.
    """
    codes = np.zeros(mol.GetNumAtoms(), "u1")
    if tagged and not assign_cip(mol):
        notes.append("CIP labels take too long to find: all are 0")
        return codes
    for i in tagged:
        atom = mol.GetAtomWithIdx(i)
        label = atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else ""
        codes[i] = CIP_LABELS.index(label) if label in CIP_LABELS else 0
    return codes


def record_from_mol(
    mol: Chem.Mol,
    uid: int,
    name: str = "",
    topology_only: bool = False,
    y: Sequence[float] = (),
    forces: np.ndarray | None = None,
    origin: Origin = Origin.SOURCE,
    notes: list[str] | None = None,
) -> MoleculeRecord:
    """Turn a sanitised RDKit molecule into a record; its CIP labels are written into it.

    Args:
        topology_only: ignore conformers; all positions are zero.
        y: labels, NaN where missing.
        forces: (num_conformers, num_atoms, 3).
        notes: gets a line for each part of the molecule that the record cannot hold.

    Raises:
        MoleculeError: there are no atoms, no 3D conformer, or the geometry is broken.
    """
    num_atoms = mol.GetNumAtoms()
    if num_atoms == 0:
        raise MoleculeError("no atoms")
    if num_atoms > 0xFFFF:
        raise MoleculeError(f"{num_atoms} atoms, more than a record can hold")
    if topology_only:
        origin |= Origin.NO_GEOMETRY
    features = features_from_mol(mol, topology_only)
    return MoleculeRecord(
        uid=uid,
        name=name,
        cip=cip_codes(
            mol, features.x[:, CHIRALITY].nonzero()[0].tolist(), [] if notes is None else notes
        ),
        **features._asdict(),
        forces=np.zeros((0, num_atoms, 3), "<f4") if forces is None else forces.astype("<f4"),
        y=np.array(y, "<f8"),
        origin=origin,
    )


def record_of_atoms(z: np.ndarray, pos: np.ndarray, uid: int) -> MoleculeRecord:
    """Return a record of atoms and positions alone, without bonds and whatever follows from them.

    Args:
        z: (num_atoms,) atomic numbers.
        pos: (num_atoms, 3) A, taken as they are.
    """
    x = np.zeros((len(z), len(ATOM_VOCABULARY)), "u1")
    x[:, 0] = z - 1  # codes of atomic numbers, H = 0
    return MoleculeRecord(
        uid=uid,
        name="",
        z=z.astype("u1"),
        x=x,
        cip=np.zeros(len(z), "u1"),
        bond_index=np.zeros((0, 2), "<u2"),
        bond_attr=np.zeros((0, 3), "u1"),
        extended_source=np.zeros(0, "<u2"),
        extended_degree=np.zeros(len(z), "<u2"),
        pos=pos[None].astype("<f4"),
        forces=np.zeros((0, len(z), 3), "<f4"),
        y=np.zeros(0, "<f8"),
    )


def any_outside_vocabulary(x: np.ndarray, bond_attr: np.ndarray) -> bool:
    """Return whether atoms or bonds have a value that the vocabularies do not list.

    Args:
        x: (num_atoms, 9) codes of ATOM_VOCABULARY.
        bond_attr: (num_bonds, 3) codes of BOND_VOCABULARY.
    """
    return bool((x == _MISC).any() or (bond_attr[:, 0] == _MISC_BOND).any())


def outside_vocabulary(record: MoleculeRecord) -> list[str]:
    """Name the atoms and bonds with a value that the vocabularies do not list.

    Of an atom it is its number, degree, charge, ...; of a bond its type.
    """
    names = list(ATOM_VOCABULARY)
    atoms = [
        f"{names[column]} of atom {atom} (Z = {record.z[atom]})"
        for column, atom in zip(*(record.x == _MISC).T.nonzero(), strict=True)
    ]
    bonds = record.bond_index[record.bond_attr[:, 0] == _MISC_BOND].tolist()
    return [*atoms, *(f"type of the bond of atoms {i} and {j}" for i, j in bonds)]


def record_from(
    molecule: str | Chem.Mol,
    topology_only: bool,
    keep_hydrogens: bool = False,
    notes: list[str] | None = None,
) -> MoleculeRecord:
    """Turn a SMILES string or an RDKit molecule into a record, with a conformer if needed.

    Conformers of the molecule (of CXSMILES, too) are used; without any, RDKit embeds one, seeded
    by the canonical SMILES. With `keep_hydrogens`, implied hydrogens are added. `notes` gets a line
    for each part of the molecule that the record cannot hold, its enhanced stereo among them.

    Raises:
        MoleculeError: the molecule cannot be parsed or embedded; the message is the reason.
        TypeError: `molecule` is of another type.
    """
    if isinstance(molecule, str):
        mol = mol_from_smiles(molecule, keep_hydrogens, coordinates=True)
    elif isinstance(molecule, Chem.Mol):
        mol = Chem.Mol(molecule) if keep_hydrogens else remove_hydrogens(molecule)
    else:
        kinds = "a SMILES string, an RDKit Mol or a PyTorch Geometric Data"
        raise TypeError(f"a molecule is of type {type(molecule).__name__}, expected {kinds}")
    stereo = stereo_note(mol if isinstance(molecule, str) else molecule)
    has_geometry = any(c.Is3D() for c in mol.GetConformers())
    if keep_hydrogens:
        mol = Chem.AddHs(mol, addCoords=has_geometry)
    if mol.GetNumAtoms() > MAX_ATOMS:
        raise MoleculeError(f"more than {MAX_ATOMS} atoms: {mol.GetNumAtoms()}")
    uid = smiles_uid(mol)
    name = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    if not topology_only and not has_geometry:
        mol = embed_conformer(mol, uid, keep_hydrogens)
    lost = forget_isotopes(mol)
    record = record_from_mol(mol, uid, name, topology_only, notes=notes)
    if notes is not None:
        notes.extend(filter(None, (*lost, stereo, *axis_notes(mol))))
    return record
