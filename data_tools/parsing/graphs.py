"""Graphs of PyTorch Geometric in files of torch.save, and what the codes in them mean.

Two codings of atoms and bonds look alike. OGB's counts elements from hydrogen, code 0, and bonds
from single, code 0; `torch_geometric.utils.from_smiles` writes atomic numbers and RDKit's numbers
of bond types. Which one a file has is decided by what fits its molecules, never assumed.
"""

from __future__ import annotations

import collections
import functools
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import (
    ATOM_VOCABULARY,
    DEGREE,
    FORMAL_CHARGE,
    LEAST_CHARGE,
    NUM_HS,
    MoleculeError,
)
from msde.errors import MsdeError

from .pickles import graph_fields

KINDS = (
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
)
COLUMNS = (len(ATOM_VOCABULARY), 3)  # of the codes of atoms and of bonds, in both codings
DECISIVE = 20  # how many times more graphs must speak for a coding than for the other


@dataclass(frozen=True)
class Coding:
    """What the first columns of `x` and `edge_attr` mean."""

    name: str
    offset: int  # atomic number less the code
    kinds: tuple[int, ...]  # the codes of KINDS


OGB = Coding("OGB", 1, (0, 1, 2, 3))
FROM_SMILES = Coding("torch_geometric.utils.from_smiles", 0, (1, 2, 3, 12))


class Collated(Sequence):
    """The graphs of an InMemoryDataset, each as the arrays of its fields by name."""

    def __init__(self, fields: dict[str, Any], slices: dict[str, Any]) -> None:
        """Keep the fields of all graphs, and where in each the graphs begin."""
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.slices = slices

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(next(iter(self.slices.values()))) - 1

    def __getitem__(self, index: Any) -> Any:
        """Return the fields of one graph, or of those of a slice in a list."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return {
            name: _part(name, values, self.slices.get(name), index)
            for name, values in self.fields.items()
        }


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, as those of torch.save and .npz are."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def is_torch_file(path: Path) -> bool:
    """Return whether the first bytes are those of torch.save; nothing is loaded."""
    if is_zip(path):
        return True
    with open(path, "rb") as file:
        return file.read(2) == b"\x80\x02"  # a pickle of protocol 2, as before torch 1.6


def load_graphs(path: Path) -> Sequence[dict[str, Any]]:
    """Load the graphs of a pickle, which the user trusts.

    Raises:
        MsdeError: it cannot be read, or holds something else.
    """
    if not is_torch_file(path):
        raise MsdeError(f"{path} is no file of torch.save")
    import torch  # takes seconds, and few formats need it

    try:
        stored = torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise MsdeError(f"{path} cannot be read: it needs the package {error.name}") from error
    except Exception as error:  # a pickle can raise anything
        raise MsdeError(f"{path} cannot be read as a file of torch.save, or is damaged") from error
    try:
        if isinstance(stored, tuple) and len(stored) > 1 and isinstance(stored[1], dict):
            if not stored[1]:
                raise MsdeError(f"{path} has no slices, which say where its molecules begin")
            return Collated(graph_fields(stored[0]), stored[1])
        if isinstance(stored, tuple) and len(stored) > 1 and stored[1] is None:
            stored = [stored[0]]  # a data set of one graph
        if isinstance(stored, list) and stored:
            return [
                {k: _numpy(v) for k, v in graph_fields(one).items() if v is not None}
                for one in stored
            ]
    except (MoleculeError, TypeError) as error:
        raise MsdeError(f"{path} holds no graphs: what it holds {error}") from error
    raise MsdeError(f"{path} is not (data, slices) of an InMemoryDataset, nor a list of graphs")


def choose_coding(path: Path, graphs: Iterable[dict[str, Any]]) -> Coding | None:
    """Return the coding of a file by a sample of its graphs; None: they have no codes.

    Raises:
        MsdeError: none fits, or both do.
    """
    graphs = [one for one in graphs if has_codes(one) or has_bond_codes(one)]
    if not graphs:
        return None
    votes: collections.Counter[Coding] = collections.Counter()
    for fits in (_fits, _builds):
        for one in graphs:
            fitting = [coding for coding in (OGB, FROM_SMILES) if fits(one, coding)]
            votes.update(fitting if len(fitting) == 1 else ())
        for coding, other in ((OGB, FROM_SMILES), (FROM_SMILES, OGB)):
            if votes[coding] > DECISIVE * votes[other]:
                return coding
    raise MsdeError(
        f"{path}: the codes of its atoms and bonds may be OGB's (first column Z - 1) or those of "
        "from_smiles (Z), and nothing tells which; give its graphs z or smiles"
    )


def has_codes(one: dict[str, Any]) -> bool:
    """Return whether `x` holds codes of atoms."""
    x, z = one.get("x"), one.get("z")
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != COLUMNS[0]:
        return False
    if not np.array_equal(x, np.floor(x)):
        return False
    offsets = (OGB.offset, FROM_SMILES.offset)
    return z is None or any(np.array_equal(x[:, 0] + n, np.ravel(z)) for n in offsets)


def has_bond_codes(one: dict[str, Any]) -> bool:
    """Return whether `edge_attr` holds codes of bonds."""
    table = one.get("edge_attr")
    return (
        isinstance(table, np.ndarray)
        and len(table) > 0
        and table.reshape(len(table), -1).shape[1] in (1, COLUMNS[1])
    )


def bond_kinds(edge_attr: np.ndarray, coding: Coding | None) -> list[int]:
    """Return the place in KINDS of each edge's bond.

    Raises:
        MoleculeError: the table is of another kind, or holds a kind of bond that is not known.
    """
    table = edge_attr.reshape(len(edge_attr), -1) if len(edge_attr) else edge_attr
    if len(edge_attr) == 0:
        return []
    if table.shape[1] == len(KINDS) and np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all():
        return table.argmax(1).tolist()
    if table.shape[1] not in (1, COLUMNS[1]) or coding is None:
        raise MoleculeError(f"edge_attr with {table.shape[1]} columns, expected codes or one-hot")
    codes = table[:, 0].tolist()
    if not set(codes) <= {*coding.kinds}:
        raise MoleculeError("edge_attr holds a kind of bond that is not known")
    return [coding.kinds.index(code) for code in codes]


def kinds_of_pairs(
    edge_index: np.ndarray, edge_attr: np.ndarray, coding: Coding | None
) -> dict[tuple[int, int], Chem.BondType]:
    """Return the kind of the bond of each pair (i, j) with i < j; edges may go either way or both.

    Raises:
        MoleculeError: `bond_kinds` fails, or two edges give a pair different kinds.
    """
    found: dict[tuple[int, int], Chem.BondType] = {}
    edges = zip(edge_index.T.tolist(), bond_kinds(edge_attr, coding), strict=True)
    for (i, j), kind in sorted(edges, key=lambda edge: edge[0][0] > edge[0][1]):
        if i != j and found.setdefault((min(i, j), max(i, j)), KINDS[kind]) != KINDS[kind]:
            raise MoleculeError(f"edge_attr gives the bond of atoms {j} and {i} two kinds")
    return found


def charges_and_hydrogens(x: np.ndarray) -> list[tuple[int, int]]:
    """Return the charge of each atom and the number of its hydrogens, by the codes of atoms.

    Hydrogens that are atoms are counted.
    """
    pairs = x[:, [FORMAL_CHARGE, NUM_HS]].tolist()
    return [(code + LEAST_CHARGE, hydrogens) for code, hydrogens in pairs]


def mol_of_codes(
    numbers: np.ndarray,
    x: np.ndarray | None,
    edge_index: np.ndarray,
    edge_attr: np.ndarray,
    coding: Coding | None,
) -> Chem.Mol:
    """Build a molecule from kinds of bonds and, where there are codes of atoms, charges.

    Raises:
        MoleculeError: there is no such molecule.
    """
    mol = Chem.RWMol()
    known = None if x is None else charges_and_hydrogens(x)
    for place, number in enumerate(numbers):
        atom = Chem.Atom(int(number))
        if known is not None:
            atom.SetFormalCharge(known[place][0])
            atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for (i, j), kind in kinds_of_pairs(edge_index, edge_attr, coding).items():
        mol.AddBond(i, j, kind)
    if known is not None:
        for atom in mol.GetAtoms():
            present = sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())
            atom.SetNumExplicitHs(max(0, known[atom.GetIdx()][1] - present))
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.AROMATIC:
            for part in (bond, bond.GetBeginAtom(), bond.GetEndAtom()):
                part.SetIsAromatic(True)
    mol = mol.GetMol()
    try:
        Chem.SanitizeMol(mol)
    except ValueError as error:
        raise MoleculeError(f"cannot be parsed: {str(error).strip()}") from error
    return mol


def _fits(one: dict[str, Any], coding: Coding) -> bool:
    """Return whether z, SMILES or else the numbers of neighbours fit a coding of one graph."""
    if has_bond_codes(one):
        table = one["edge_attr"].reshape(len(one["edge_attr"]), -1)
        if not np.isin(table[:, 0], coding.kinds).all():
            return False
    if not has_codes(one):
        return True
    x = one["x"].astype(np.int64)
    numbers = x[:, 0] + coding.offset
    if isinstance(one.get("z"), np.ndarray):
        return np.array_equal(numbers, one["z"].reshape(-1))
    smiles = one.get("smiles")
    mol = Chem.MolFromSmiles(smiles, sanitize=False) if isinstance(smiles, str) else None
    if mol is not None:
        heavy = sorted(a.GetAtomicNum() for a in mol.GetAtoms() if a.GetAtomicNum() > 1)
        return heavy == sorted(numbers[numbers > 1].tolist())
    return all(
        1 <= number <= 118 and degree <= _most_neighbours(number - charge - LEAST_CHARGE)
        for number, degree, charge in zip(numbers, x[:, DEGREE], x[:, FORMAL_CHARGE], strict=True)
    )


@functools.cache
def _most_neighbours(number: int) -> int:
    """Return how many neighbours an element can have; a charged atom is as its isoelectronic."""
    if not 1 <= number <= 118:
        return 0
    valences = list(Chem.GetPeriodicTable().GetValenceList(int(number)))
    return 99 if -1 in valences else max(valences, default=0)


def _builds(one: dict[str, Any], coding: Coding) -> bool:
    """Return whether a graph is a molecule without radicals under a coding."""
    x, edges, kinds = one.get("x"), one.get("edge_index"), one.get("edge_attr")
    if edges is None or kinds is None:
        return False
    try:
        if has_codes(one):
            x = x.astype(np.int64)
            numbers = x[:, 0] + coding.offset
        else:
            x, numbers = None, one["z"].reshape(-1)
        mol = mol_of_codes(numbers, x, edges, kinds, coding)
    except (MoleculeError, KeyError, ValueError, RuntimeError):
        return False
    return not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


def _part(name: str, values: Any, offsets: Any, index: int) -> Any:
    """Return the part of one molecule; tensors of edges are cut along their last axis."""
    if offsets is None:
        return values
    start, end = int(offsets[index]), int(offsets[index + 1])
    if isinstance(values, list):
        return values[start] if end - start == 1 else values[start:end]
    if not hasattr(values, "numpy"):
        return values
    if "index" in name:
        return values[..., start:end].numpy()
    return values[start:end].numpy()


def _numpy(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value
