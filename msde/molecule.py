"""RDKit molecules to plain arrays: features, vocabularies and conformers.

This is the only module on the training path that imports rdkit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdCIPLabeler, rdDistGeom, rdForceFieldHelpers

# The vocabularies of the Open Graph Benchmark (Hu et al. 2020, ogb.utils.features). The last entry
# of a column catches every value that the column does not list.
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
# Centres that are pseudo-asymmetric have small letters. They take the rows of the chirality tags.
CIP_LABELS = ["", "R", "S", "r", "s"]

CIP_ITERATIONS = 1_250_000  # what RDKit recommends: below a second
MAX_HOPS = 4  # pairs of atoms up to four bonds apart are the edges of the 2D -> 3D score network
MAX_ATOMS = 1024  # of a molecule that is embedded: all pairs of atoms are looked at
MIN_DISTANCE = 1e-2  # A; two atoms closer than this mark a broken geometry

_ATOM_CODES = [{v: i for i, v in enumerate(values)} for values in ATOM_VOCABULARY.values()]
_BOND_CODES = [{v: i for i, v in enumerate(values)} for values in BOND_VOCABULARY.values()]


class MoleculeError(ValueError):
    """A molecule that cannot be used; the message is the reason that users read."""


@dataclass(frozen=True)
class MoleculeRecord:
    """One molecule as plain arrays; bonds and extended pairs are stored once, first atom smaller.

    `uid` identifies it for ever: shuffling, splits and noise are keyed by it.
    """

    uid: int
    name: str
    z: np.ndarray  # (num_atoms,) u1, atomic numbers, H = 1
    x: np.ndarray  # (num_atoms, 9) u1, codes of ATOM_VOCABULARY
    cip: np.ndarray  # (num_atoms,) u1, codes of CIP_LABELS
    bond_index: np.ndarray  # (num_bonds, 2) u2
    bond_attr: np.ndarray  # (num_bonds, 3) u1, codes of BOND_VOCABULARY
    extended_index: np.ndarray  # (num_extended, 2) u2, pairs up to MAX_HOPS bonds apart
    pos: np.ndarray  # (num_conformers, num_atoms, 3) f4, A, each conformer centred at its mean


def molecule_uid(source: str, position: int | str) -> int:
    """Return the stable 64-bit id of the molecule at one position of one source file."""
    digest = hashlib.sha256(f"{source}\0{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def atom_features(atom: Chem.Atom) -> list[int]:
    """Return the nine OGB codes of an atom; values outside a vocabulary get its last code."""
    values = (
        atom.GetAtomicNum(),
        str(atom.GetChiralTag()),
        atom.GetTotalDegree(),
        atom.GetFormalCharge(),
        atom.GetTotalNumHs(),
        atom.GetNumRadicalElectrons(),
        str(atom.GetHybridization()),
        atom.GetIsAromatic(),
        atom.IsInRing(),
    )
    return [codes.get(v, len(codes) - 1) for codes, v in zip(_ATOM_CODES, values, strict=True)]


def bond_features(bond: Chem.Bond) -> list[int]:
    """Return the three OGB codes of a bond; values outside a vocabulary get its last code."""
    values = (str(bond.GetBondType()), str(bond.GetStereo()), bond.GetIsConjugated())
    return [codes.get(v, len(codes) - 1) for codes, v in zip(_BOND_CODES, values, strict=True)]


def extended_pairs(bond_index: np.ndarray, num_atoms: int) -> np.ndarray:
    """Return the pairs i < j that are one to MAX_HOPS = 4 bonds apart, in lexicographic order.

    The adjacency matrix is squared twice, each time united with what it was before.
    """
    near = np.zeros((num_atoms, num_atoms), np.float32)
    near[bond_index[:, 0], bond_index[:, 1]] = 1
    near[bond_index[:, 1], bond_index[:, 0]] = 1
    for _ in range(2):
        near = ((near + near @ near) > 0).astype(np.float32)
    return np.argwhere(np.triu(near, 1)).astype("<u2")


def record_from_mol(
    mol: Chem.Mol, uid: int, name: str = "", topology_only: bool = False
) -> MoleculeRecord:
    """Turn a sanitised RDKit molecule into a record; the molecule is left as it is.

    Args:
        topology_only: do without 3D conformers; all positions are zero.

    Raises:
        MoleculeError: there are no atoms, no 3D conformer, or the geometry is broken.
    """
    num_atoms = mol.GetNumAtoms()
    if num_atoms == 0:
        raise MoleculeError("no atoms")
    if num_atoms > np.iinfo(np.uint16).max:
        raise MoleculeError(f"{num_atoms} atoms, more than a record can hold")
    pos = np.zeros((1, num_atoms, 3))
    if not topology_only:
        conformers = [c.GetPositions() for c in mol.GetConformers() if c.Is3D()]
        if not conformers:
            raise MoleculeError("no 3D conformer")
        pos = np.stack(conformers)  # (num_conformers, num_atoms, 3)
        check_geometry(pos)
        pos = pos - pos.mean(axis=1, keepdims=True)

    mol = Chem.Mol(mol)  # labels are written into it
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), *bond_features(b)) for b in mol.GetBonds()]
    bond_table = np.array(bonds, np.int64).reshape(-1, 5)
    bond_index = np.sort(bond_table[:, :2], axis=1)
    try:
        rdCIPLabeler.AssignCIPLabels(mol, maxRecursiveIterations=CIP_ITERATIONS)
    except RuntimeError as error:  # a cage, in which the labels would take for ever
        raise MoleculeError("its CIP labels take too long to find") from error
    cip = [a.GetProp("_CIPCode") if a.HasProp("_CIPCode") else "" for a in mol.GetAtoms()]
    return MoleculeRecord(
        uid=uid,
        name=name,
        z=np.array([a.GetAtomicNum() for a in mol.GetAtoms()], "u1"),
        x=np.array([atom_features(a) for a in mol.GetAtoms()], "u1"),
        cip=np.array([CIP_LABELS.index(c) if c in CIP_LABELS else 0 for c in cip], "u1"),
        bond_index=bond_index.astype("<u2"),
        bond_attr=bond_table[:, 2:].astype("u1"),
        extended_index=extended_pairs(bond_index, num_atoms),
        pos=pos.astype("<f4"),
    )


def outside_vocabulary(record: MoleculeRecord) -> list[str]:
    """Say which atoms have a number, degree, charge, ... that ATOM_VOCABULARY does not list."""
    found = []
    for column, (name, values) in enumerate(ATOM_VOCABULARY.items()):
        # Hybridisations that are not listed are common (every s orbital) and mean little.
        if values[-1] == "misc" and name != "hybridization":
            for atom in np.flatnonzero(record.x[:, column] == len(values) - 1):
                found.append(f"{name} of atom {atom} (Z = {record.z[atom]})")
    return found


def check_geometry(pos: np.ndarray) -> None:
    """Raise MoleculeError if a conformer of pos, (num_conformers, num_atoms, 3) in A, is broken."""
    if not np.isfinite(pos).all():
        raise MoleculeError("coordinates that are not finite numbers")
    for conformer in pos:
        # Sorting along one axis first keeps this linear in practice for large molecules.
        order = np.argsort(conformer[:, 0], kind="stable")
        ordered = conformer[order]
        for shift in range(1, len(ordered)):
            gap = ordered[shift:] - ordered[:-shift]
            if (gap[:, 0] > MIN_DISTANCE).all():
                break
            if (np.square(gap).sum(-1) < MIN_DISTANCE**2).any():
                raise MoleculeError(f"two atoms closer than {MIN_DISTANCE} A")


def mol_from_smiles(smiles: str, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse a SMILES string, or raise MoleculeError with RDKit's reason."""
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    mol = Chem.MolFromSmiles(smiles, parameters)
    if mol is None:
        raw = Chem.MolFromSmiles(smiles, sanitize=False)
        raise MoleculeError(_parse_failure(raw, "SMILES syntax"))
    return mol


def mol_from_molblock(block: str, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse a mol block with stereo taken from its coordinates, or raise MoleculeError."""
    mol = Chem.MolFromMolBlock(block, removeHs=not keep_hydrogens)
    if mol is None:
        raw = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        raise MoleculeError(_parse_failure(raw, "mol block syntax"))
    return mol


def _parse_failure(raw: Chem.Mol | None, otherwise: str) -> str:
    """Say why RDKit refused a molecule, given what it reads of it without sanitising."""
    problems = Chem.DetectChemistryProblems(raw) if raw is not None else ()
    return f"cannot be parsed: {problems[0].Message() if problems else otherwise}"


def embed_conformer(mol: Chem.Mol, seed: int, keep_hydrogens: bool = False) -> Chem.Mol:
    """Return the molecule with one conformer by ETKDGv3 (Wang et al. 2020) and MMFF94.

    Bounded by iterations, never by time, so that the result depends on the seed alone. Molecules
    that MMFF has no parameters for keep the geometry of ETKDGv3.

    Raises:
        MoleculeError: no conformer was found, or RDKit failed on the molecule.
    """
    try:
        full = Chem.AddHs(mol)
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed & 0x7FFFFFFF
        parameters.maxIterations = 20
        if rdDistGeom.EmbedMolecule(full, parameters) < 0:
            parameters.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(full, parameters) < 0:
                raise MoleculeError("no conformer found")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(full):
            rdForceFieldHelpers.MMFFOptimizeMolecule(full, maxIters=200)
        return full if keep_hydrogens else Chem.RemoveHs(full)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, MoleculeError):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise MoleculeError(f"RDKit failed: {first.strip()}") from error


def record_from(
    molecule: str | Chem.Mol, topology_only: bool, keep_hydrogens: bool = False
) -> MoleculeRecord:
    """Turn a SMILES string or an RDKit molecule into a record, with a conformer where needed.

    Conformers that the molecule brings along (of CXSMILES, too) are used; else RDKit makes one,
    seeded by the canonical SMILES. With `keep_hydrogens` implied hydrogens are added, too.

    Raises:
        MoleculeError: it cannot be parsed or embedded; the message is the reason.
        TypeError: it is neither.
    """
    if isinstance(molecule, str):
        mol = mol_from_smiles(molecule, keep_hydrogens)
    elif isinstance(molecule, Chem.Mol):
        mol = Chem.Mol(molecule) if keep_hydrogens else Chem.RemoveHs(molecule)
    else:
        kinds = "a SMILES string, an RDKit Mol or a PyTorch Geometric Data"
        raise TypeError(f"a molecule is of type {type(molecule).__name__}, expected {kinds}")
    has_geometry = any(c.Is3D() for c in mol.GetConformers())
    if keep_hydrogens:
        mol = Chem.AddHs(mol, addCoords=has_geometry)
    if mol.GetNumAtoms() > MAX_ATOMS:
        raise MoleculeError(f"more than {MAX_ATOMS} atoms: {mol.GetNumAtoms()}")
    uid = molecule_uid("", Chem.MolToSmiles(Chem.Mol(mol)))
    name = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    if not topology_only and not has_geometry:
        mol = embed_conformer(mol, uid, keep_hydrogens)
    return record_from_mol(mol, uid, name, topology_only)


def atomic_weights() -> np.ndarray:
    """Return the standard atomic weights of Z = 0 (one, for no element) to 118, float64."""
    table = Chem.GetPeriodicTable()
    return np.array([1.0, *(table.GetAtomicWeight(z) for z in range(1, 119))])


def silence_rdkit() -> None:
    """Stop RDKit from writing to the terminal; failures reach users as MoleculeError."""
    rdBase.DisableLog("rdApp.*")
