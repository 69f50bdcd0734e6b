"""RDKit molecules to plain arrays: features, vocabularies and conformers.

This is the only module on the training path that imports rdkit.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Atom, Bond, rdCIPLabeler, rdDistGeom, rdForceFieldHelpers, rdqueries

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
_CLOSE = 0.3  # A; atoms that are all further apart than this need no second look


def _codes(values: list, named: Mapping) -> dict:
    """Return the code of each value of an enumeration of RDKit, given as name -> value."""
    return {v: values.index(n) if n in values else len(values) - 1 for n, v in named.items()}


# Enumerations are looked up as they are: to make a name of one takes longer than all else. Numbers
# become codes a molecule at a time, by bytes.translate.
_BYTES = {number: number for number in range(256)}
_NUMBERS = {name: bytes(_codes(v, _BYTES).values()) for name, v in ATOM_VOCABULARY.items()}
_CHARGES = _codes(ATOM_VOCABULARY["formal_charge"], {q: q for q in range(-128, 128)})
_CHIRALITIES = _codes(ATOM_VOCABULARY["chirality"], Chem.ChiralType.names)
_HYBRIDIZATIONS = _codes(ATOM_VOCABULARY["hybridization"], Chem.HybridizationType.names)
_BOND_TYPES = _codes(BOND_VOCABULARY["type"], Chem.BondType.names)
_BOND_STEREO = _codes(BOND_VOCABULARY["stereo"], Chem.BondStereo.names)
_TAGGED = Chem.RWMol(Chem.MolFromSmarts("*"))  # matches atoms that have a chirality tag
_TAGGED.ReplaceAtom(0, rdqueries.HasChiralTagQueryAtom())


class MoleculeError(ValueError):
    """A molecule that cannot be used; the message is the reason that users read."""


class Origin(enum.IntFlag):
    """What of a molecule does not come from its source."""

    SOURCE = 0
    BONDS_PERCEIVED = 1  # RDKit found the bonds from the positions
    CONFORMERS_MADE = 2  # RDKit made the conformers
    NO_GEOMETRY = 4  # there are none: all positions are zero


@dataclass(frozen=True)
class MoleculeRecord:
    """One molecule as plain arrays; bonds are stored once, first atom smaller.

    `uid` identifies it for ever: shuffling, splits and noise are keyed by it.
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


def atom_features(mol: Chem.Mol, tagged: Sequence[int]) -> np.ndarray:
    """Return codes of ATOM_VOCABULARY, (num_atoms, 9) u1; `tagged` have a chirality tag."""
    # RDKit's own iterator takes three times as long.
    atoms = [mol.GetAtomWithIdx(i) for i in range(mol.GetNumAtoms())]

    def numbers(column: str, getter: Callable[[Atom], int]) -> bytes:
        try:
            return bytes(map(getter, atoms)).translate(_NUMBERS[column])
        except ValueError as error:  # dummies can have any number of neighbours
            raise MoleculeError(f"an atom with a {column} above 255") from error

    chirality = bytearray(len(atoms))
    for i in tagged:
        chirality[i] = _CHIRALITIES[atoms[i].GetChiralTag()]
    columns = (
        numbers("atomic_num", Atom.GetAtomicNum),
        chirality,
        numbers("degree", Atom.GetTotalDegree),
        bytes([_CHARGES[charge] for charge in map(Atom.GetFormalCharge, atoms)]),
        numbers("num_hs", Atom.GetTotalNumHs),
        numbers("num_radical_electrons", Atom.GetNumRadicalElectrons),
        bytes([_HYBRIDIZATIONS[kind] for kind in map(Atom.GetHybridization, atoms)]),
        bytes(map(Atom.GetIsAromatic, atoms)),
        bytes(map(Atom.IsInRing, atoms)),
    )
    return np.frombuffer(b"".join(columns), "u1").reshape(9, -1).T.copy()


def bond_features(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """Return atoms of bonds, smaller first, (num_bonds, 2) u2, and BOND_VOCABULARY's codes."""
    bonds = [mol.GetBondWithIdx(i) for i in range(mol.GetNumBonds())]
    both = itertools.chain(map(Bond.GetBeginAtomIdx, bonds), map(Bond.GetEndAtomIdx, bonds))
    ends = np.fromiter(both, "<u2", 2 * len(bonds)).reshape(2, -1)
    ends.sort(axis=0)
    types = bytes([_BOND_TYPES[kind] for kind in map(Bond.GetBondType, bonds)])
    conjugated = bytes(map(Bond.GetIsConjugated, bonds))
    stereo = bytearray(len(bonds))
    for i, (kind, planar) in enumerate(zip(types, conjugated, strict=True)):
        # Double bonds, and the axes of atropisomers, which are single and conjugated.
        if kind == 1 or (kind == 0 and planar):
            stereo[i] = _BOND_STEREO[bonds[i].GetStereo()]
    codes = np.frombuffer(types + stereo + conjugated, "u1").reshape(3, -1)
    return ends.T.copy(), codes.T.copy()  # (num_bonds, 2), (num_bonds, 3)


def tagged_atoms(mol: Chem.Mol) -> list[int]:
    """Return the atoms that have a chirality tag."""
    return [atom for (atom,) in mol.GetSubstructMatches(_TAGGED, maxMatches=mol.GetNumAtoms())]


def cip_codes(mol: Chem.Mol, tagged: Sequence[int]) -> np.ndarray:
    """Write CIP labels into a molecule; return codes, (num_atoms,) u1, zero unless `tagged`."""
    codes = np.zeros(mol.GetNumAtoms(), "u1")
    if tagged:
        try:
            rdCIPLabeler.AssignCIPLabels(mol, maxRecursiveIterations=CIP_ITERATIONS)
        except RuntimeError as error:  # a cage, in which the labels would take for ever
            raise MoleculeError("its CIP labels take too long to find") from error
    for i in tagged:
        atom = mol.GetAtomWithIdx(i)
        label = atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else ""
        codes[i] = CIP_LABELS.index(label) if label in CIP_LABELS else 0
    return codes


def extended_edges(bond_index: np.ndarray, num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges between atoms that are one to MAX_HOPS = 4 bonds apart.

    The adjacency matrix, with every atom next to itself, is squared twice.

    Returns:
        The sources of all edges, sorted by target and source, (num_extended,) u2, and the number
        of edges of each target, (num_atoms,) u2.
    """
    begin, end = bond_index.T.astype(np.intp)
    near = np.zeros((num_atoms, num_atoms), np.float32)  # numbers of walks: only zeros matter
    near[begin, end] = near[end, begin] = 1
    near.ravel()[:: num_atoms + 1] = 1
    for _ in range(2):
        near = near @ near
    near.ravel()[:: num_atoms + 1] = 0
    target, source = near.nonzero()
    return source.astype("<u2"), np.bincount(target, minlength=num_atoms).astype("<u2")


def record_from_mol(
    mol: Chem.Mol,
    uid: int,
    name: str = "",
    topology_only: bool = False,
    y: Sequence[float] = (),
    forces: np.ndarray | None = None,
    origin: Origin = Origin.SOURCE,
) -> MoleculeRecord:
    """Turn a sanitised RDKit molecule into a record; its CIP labels are written into it.

    Args:
        topology_only: do without 3D conformers; all positions are zero.
        y: labels, NaN where missing.
        forces: (num_conformers, num_atoms, 3).

    Raises:
        MoleculeError: there are no atoms, no 3D conformer, or the geometry is broken.
    """
    num_atoms = mol.GetNumAtoms()
    if num_atoms == 0:
        raise MoleculeError("no atoms")
    if num_atoms > np.iinfo(np.uint16).max:
        raise MoleculeError(f"{num_atoms} atoms, more than a record can hold")
    pos = np.zeros((1, num_atoms, 3))
    if topology_only:
        origin |= Origin.NO_GEOMETRY
    else:
        one = mol.GetNumConformers() == 1  # not worth the exception that ends an iteration
        conformers = (mol.GetConformer(),) if one else mol.GetConformers()
        pos = np.array([c.GetPositions() for c in conformers if c.Is3D()])
        if len(pos) == 0:
            raise MoleculeError("no 3D conformer")
        check_geometry(pos)
        pos -= np.add.reduce(pos, axis=1, keepdims=True) / num_atoms

    tagged = tagged_atoms(mol)
    x = atom_features(mol, tagged)
    bond_index, bond_attr = bond_features(mol)
    extended_source, extended_degree = extended_edges(bond_index, num_atoms)
    return MoleculeRecord(
        uid=uid,
        name=name,
        z=(x[:, 0] + 1) % 119,  # code 118 is atomic number 0, RDKit's dummy
        x=x,
        cip=cip_codes(mol, tagged),
        bond_index=bond_index,
        bond_attr=bond_attr,
        extended_source=extended_source,
        extended_degree=extended_degree,
        pos=pos.astype("<f4"),
        forces=np.zeros((0, num_atoms, 3), "<f4") if forces is None else forces.astype("<f4"),
        y=np.array(y, "<f8"),
        origin=origin,
    )


def outside_vocabulary(record: MoleculeRecord) -> list[str]:
    """Say which atoms have a number, degree, charge, ... that ATOM_VOCABULARY does not list."""
    found = []
    for column, (name, values) in enumerate(ATOM_VOCABULARY.items()):
        # Hybridisations that are not listed are common (every s orbital) and mean little.
        if values[-1] == "misc" and name != "hybridization":
            # Bytes are searched faster than an array of so few numbers is compared.
            if len(values) - 1 in record.x[:, column].tobytes():
                for atom in np.flatnonzero(record.x[:, column] == len(values) - 1):
                    found.append(f"{name} of atom {atom} (Z = {record.z[atom]})")
    return found


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
        # The atoms themselves are counted, too. What is left may be close, or just far away.
        if np.count_nonzero(half > -(_CLOSE**2) / 2) == num_conformers * num_atoms:
            return
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
    """Return the molecule with one conformer; see `embed_conformers`."""
    return embed_conformers(mol, seed, 1, keep_hydrogens)


def embed_conformers(
    mol: Chem.Mol, seed: int, count: int, keep_hydrogens: bool = False
) -> Chem.Mol:
    """Return the molecule with conformers by ETKDGv3 (Wang et al. 2020) and MMFF94.

    Bounded by iterations, never by time, so that the result depends on the seed alone. Molecules
    that MMFF has no parameters for keep the geometry of ETKDGv3. Of several conformers some may
    not be found; those that are stay.

    Raises:
        MoleculeError: no conformer was found, or RDKit failed on the molecule.
    """
    try:
        full = Chem.AddHs(mol)
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed & 0x7FFFFFFF
        parameters.maxIterations = 20
        if not len(rdDistGeom.EmbedMultipleConfs(full, count, parameters)):
            parameters.useRandomCoords = True
            if not len(rdDistGeom.EmbedMultipleConfs(full, count, parameters)):
                raise MoleculeError("no conformer found")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(full):
            relaxed = Chem.Mol(full)  # a copy, since MMFF writes its own aromaticity into it
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(relaxed, numThreads=1, maxIters=200)
            for mine, its in zip(full.GetConformers(), relaxed.GetConformers(), strict=True):
                mine.SetPositions(its.GetPositions())
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
