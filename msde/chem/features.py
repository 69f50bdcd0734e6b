"""Features, extended edges and centred positions of RDKit molecules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.Chem import Atom, Bond

from msde.chem.stereo import legacy_perception
from msde.chem.vocabulary import CODES, MoleculeError

MAX_HOPS = 4  # pairs of atoms up to four bonds apart are the edges of the 2D -> 3D score network
MIN_DISTANCE = 1e-2  # A; two atoms closer than this mark a broken geometry
_CLOSE = 0.3  # A; if all atoms are further apart, the approximate distances are enough


class Features(NamedTuple):
    """The arrays of a record besides its CIP labels; see `record.MoleculeRecord`."""

    pos: np.ndarray  # (num_conformers, num_atoms, 3) f4, A, each conformer centred at its mean
    bond_index: np.ndarray  # (num_bonds, 2) u2, first atom smaller
    extended_source: np.ndarray  # (num_extended,) u2, by target
    extended_degree: np.ndarray  # (num_atoms,) u2
    z: np.ndarray  # (num_atoms,) u1
    x: np.ndarray  # (num_atoms, 9) u1, codes of ATOM_VOCABULARY
    bond_attr: np.ndarray  # (num_bonds, 3) u1, codes of BOND_VOCABULARY


def atom_features(mol: Chem.Mol) -> np.ndarray:
    """Return codes of ATOM_VOCABULARY, (num_atoms, 9) u1."""
    # RDKit's own iterator is three times slower.
    atoms = [mol.GetAtomWithIdx(i) for i in range(mol.GetNumAtoms())]
    values: dict[str, Iterable[int]] = {
        "atomic_num": map(Atom.GetAtomicNum, atoms),
        "chirality": map(Atom.GetChiralTag, atoms),
        "degree": map(Atom.GetTotalDegree, atoms),
        "formal_charge": [charge % 256 for charge in map(Atom.GetFormalCharge, atoms)],
        "num_hs": map(Atom.GetTotalNumHs, atoms),
        "num_radical_electrons": map(Atom.GetNumRadicalElectrons, atoms),
        "hybridization": map(Atom.GetHybridization, atoms),
        "is_aromatic": map(Atom.GetIsAromatic, atoms),
        "is_in_ring": map(Atom.IsInRing, atoms),
    }
    return _columns(values)


def bond_features(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms of bonds, smaller first, (num_bonds, 2) u2, and codes, (num_bonds, 3) u1."""
    if not Chem.GetUseLegacyStereoPerception():
        mol = Chem.Mol(mol)
        with legacy_perception():  # makes cis and trans E and Z
            Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    bonds = [mol.GetBondWithIdx(i) for i in range(mol.GetNumBonds())]
    both = itertools.chain(map(Bond.GetBeginAtomIdx, bonds), map(Bond.GetEndAtomIdx, bonds))
    ends = np.fromiter(both, "<u2", 2 * len(bonds)).reshape(2, -1)
    ends.sort(axis=0)
    values: dict[str, Iterable[int]] = {
        "type": map(Bond.GetBondType, bonds),
        "stereo": map(Bond.GetStereo, bonds),
        "is_conjugated": map(Bond.GetIsConjugated, bonds),
    }
    return ends.T.copy(), _columns(values)  # (num_bonds, 2), (num_bonds, 3)


def _columns(values: Mapping[str, Iterable[int]]) -> np.ndarray:
    """Return the codes of the values of each column, (num_rows, num_columns) u1."""
    codes = []
    for column, of_rows in values.items():
        try:
            codes.append(bytes(of_rows).translate(CODES[column]))
        except ValueError as error:  # dummy atoms can have any number of neighbours
            raise MoleculeError(f"an atom with a {column} above 255") from error
    return np.frombuffer(b"".join(codes), "u1").reshape(len(values), -1).T.copy()


def extended_edges(bond_index: np.ndarray, num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges between atoms that are one to MAX_HOPS = 4 bonds apart.

    The adjacency matrix, with every atom next to itself, is squared twice.

    Returns:
        The sources of all edges, sorted by target and source, (num_extended,) u2, and the number
        of edges of each target, (num_atoms,) u2.
    """
    begin, end = bond_index.T.astype(np.intp)
    near = np.zeros((num_atoms, num_atoms), np.float32)  # numbers of walks; above zero is near
    near[begin, end] = near[end, begin] = 1
    near.ravel()[:: num_atoms + 1] = 1
    for _ in range(2):
        near = near @ near
    near.ravel()[:: num_atoms + 1] = 0
    target, source = near.nonzero()
    return source.astype("<u2"), np.bincount(target, minlength=num_atoms).astype("<u2")


def centred_positions(mol: Chem.Mol) -> np.ndarray:
    """Return the 3D conformers, (num_conformers, num_atoms, 3) f4, centred at their means.

    Raises:
        MoleculeError: there is no 3D conformer, or the geometry of one is broken.
    """
    one = mol.GetNumConformers() == 1  # the exception that ends an iteration would take longer
    conformers = (mol.GetConformer(),) if one else mol.GetConformers()
    pos = np.array([c.GetPositions() for c in conformers if c.Is3D()])
    if len(pos) == 0:
        raise MoleculeError("no 3D conformer")
    check_geometry(pos)
    mean = np.add.reduce(pos, axis=1, keepdims=True, initial=0.0) / pos.shape[1]
    return (pos - mean).astype("<f4")


def check_geometry(pos: np.ndarray) -> None:
    """Raise MoleculeError if a conformer of pos, (num_conformers, num_atoms, 3) in A, is broken."""
    if np.count_nonzero(np.isfinite(pos)) != pos.size:
        raise MoleculeError("coordinates that are not finite numbers")
    num_conformers, num_atoms, _ = pos.shape
    if num_conformers * num_atoms**2 < 2**20:
        pos = np.asarray(pos, np.float64)
        half = pos @ pos.transpose(0, 2, 1)  # (num_conformers, num_atoms, num_atoms)
        squares = half.diagonal(axis1=1, axis2=2) / 2
        half -= squares[:, None]
        half -= squares[..., None]  # minus half of the squared distances
        # The count includes each atom with itself. Other pairs may be close, or so far from the
        # origin that rounding errors are large: they are checked exactly below.
        if np.count_nonzero(half > -(_CLOSE**2) / 2) == num_conformers * num_atoms:
            return
    for conformer in pos:
        # Sorted along one axis, this takes linear time in practice.
        order = np.argsort(conformer[:, 0], kind="stable")
        ordered = conformer[order]
        for shift in range(1, len(ordered)):
            gap = ordered[shift:] - ordered[:-shift]
            if (gap[:, 0] > MIN_DISTANCE).all():
                break
            if (np.square(gap).sum(-1) < MIN_DISTANCE**2).any():
                raise MoleculeError(f"two atoms closer than {MIN_DISTANCE} A")


def features_from_mol(mol: Chem.Mol, topology_only: bool = False) -> Features:
    """Return the arrays of a record besides CIP labels; positions are 0 if `topology_only`.

    Raises:
        MoleculeError: there is no 3D conformer, or the geometry is broken.
    """
    num_atoms = mol.GetNumAtoms()
    pos = np.zeros((1, num_atoms, 3), "<f4") if topology_only else centred_positions(mol)
    x = atom_features(mol)
    bond_index, bond_attr = bond_features(mol)
    source, degree = extended_edges(bond_index, num_atoms)
    z = (x[:, 0] + 1) % 119  # code 118 is atomic number 0, RDKit's dummy
    return Features(pos, bond_index, source, degree, z, x, bond_attr)
