"""PyTorch Geometric's processed data sets, `.pt`: its QM9, MoleculeSDE's PCQM4Mv2 and their kind.

Such a file is `(data, slices)` of an InMemoryDataset, with the class as a third part or not, and a
pickle. Required are `pos` (or `positions`) and atomic numbers, `z` or the first column of OGB's
codes in `x`. Bonds come from, in this order: `edge_index` with `smiles`;
`edge_index` with `edge_attr`, either OGB's codes or one-hot rows of the four kinds (charges and
hydrogens are then in OGB's `x`); `edge_index`, bond orders perceived; the positions alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.record import Origin
from msde.chem.vocabulary import ATOM_VOCABULARY, MoleculeError
from msde.errors import MsdeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned, attempt
from ..parsing.labels import all_or_none
from ..parsing.perception import bonds_of_smiles, connect, order_bonds, parsed_geometry
from ..parsing.pickles import graph_fields
from ..parsing.reader import malformed_as_error

# The targets of torch_geometric.datasets.QM9, in its order.
QM9 = (
    *(Label("mu", "D"), Label("alpha", "a0^3"), Label("homo", "eV"), Label("lumo", "eV")),
    *(Label("gap", "eV"), Label("r2", "a0^2"), Label("zpve", "eV"), Label("u0", "eV")),
    *(Label("u298", "eV"), Label("h298", "eV"), Label("g298", "eV"), Label("cv", "cal/mol/K")),
    *(Label(f"{name}_atom", "eV") for name in ("u0", "u298", "h298", "g298")),
    *(Label(name, "GHz") for name in ("A", "B", "C")),
)
KINDS = (
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
)
CODES = (len(ATOM_VOCABULARY), 3)  # columns of OGB's codes for atoms and bonds


@dataclass(frozen=True)
class Graph:
    """The fields of one molecule."""

    numbers: np.ndarray  # (num_atoms,)
    position: np.ndarray  # (num_atoms, 3) A
    x: np.ndarray | None  # (num_atoms, 9), OGB's codes
    edge_index: np.ndarray | None  # (2, num_edges)
    edge_attr: np.ndarray | None  # (num_edges, ...)
    smiles: str


class Reader(BaseReader):
    suffixes = (".pt", ".pth")

    def recognises(self, path: Path) -> bool:
        """Return whether suffix and first bytes are those of torch.save; nothing is loaded."""
        if not super().recognises(path):
            return False
        if zipfile.is_zipfile(path):
            return True
        with open(path, "rb") as file:
            return file.read(2) == b"\x80\x02"  # a pickle of protocol 2, as before torch 1.6

    def is_pickle(self, name: str) -> bool:
        return True

    def file_facts(self, path: Path) -> Facts:
        return Facts(all_or_none(path, _labels(_load(path)[0]), self.options))

    def scan(self, path: Path) -> Iterator[Scanned]:
        fields, slices = _load(path)
        is_labelled = bool(all_or_none(path, _labels(fields), self.options))
        for index in range(len(next(iter(slices.values()))) - 1):
            one = {name: _part(name, fields[name], slices.get(name), index) for name in fields}
            name = one.get("name", "")
            name = name if isinstance(name, str) else ""
            yield index + 1, name, *attempt(_graph, one, is_labelled)

    def build(self, raw: RawMolecule) -> Parsed:
        graph = raw.payload
        mol, origin = _molecule(graph)
        positions = graph.position[None]
        return parsed_geometry(mol, positions, self.options, raw.y, origin=origin)


def _molecule(graph: Graph) -> tuple[Chem.Mol, Origin]:
    if graph.edge_index is None:
        bonds = connect(graph.numbers, graph.position)
        return order_bonds(graph.numbers, bonds), Origin.BONDS_PERCEIVED
    ends = graph.edge_index.T.tolist()
    if any(not 0 <= end < len(graph.numbers) for pair in ends for end in pair):
        raise MoleculeError("edge_index holds a number that is not of an atom")
    bonds = tuple(sorted({(min(pair), max(pair)) for pair in ends if pair[0] != pair[1]}))
    if graph.smiles:
        return bonds_of_smiles(graph.numbers, bonds, graph.smiles), Origin.SOURCE
    if graph.edge_attr is None:
        return order_bonds(graph.numbers, bonds), Origin.BONDS_PERCEIVED
    return _from_codes(graph), Origin.SOURCE


def _from_codes(graph: Graph) -> Chem.Mol:
    """Build a molecule from kinds of bonds and, where there are OGB's codes, charges."""
    mol = Chem.RWMol()
    for place, number in enumerate(graph.numbers):
        atom = Chem.Atom(int(number))
        if graph.x is not None:
            # Column 3 is the charge, 4 the number of hydrogens, those that are atoms included.
            atom.SetFormalCharge(int(graph.x[place, 3]) - 5)
            atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    kinds = _kinds(graph.edge_attr)
    for (i, j), kind in zip(graph.edge_index.T.tolist(), kinds, strict=True):
        if i < j and mol.GetBondBetweenAtoms(i, j) is None:
            mol.AddBond(i, j, KINDS[kind])
    if graph.x is not None:
        for atom in mol.GetAtoms():
            present = sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())
            atom.SetNumExplicitHs(max(0, int(graph.x[atom.GetIdx(), 4]) - present))
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.AROMATIC:
            for atom in (bond, bond.GetBeginAtom(), bond.GetEndAtom()):
                atom.SetIsAromatic(True)
    mol = mol.GetMol()
    try:
        Chem.SanitizeMol(mol)
    except ValueError as error:
        raise MoleculeError(f"cannot be parsed: {str(error).strip()}") from error
    return mol


def _kinds(edge_attr: np.ndarray) -> list[int]:
    """Return the place in KINDS of each edge's bond."""
    table = edge_attr.reshape(len(edge_attr), -1)
    if table.shape[1] == len(KINDS) and np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all():
        kinds = table.argmax(1)
    elif table.shape[1] in (1, CODES[1]):
        kinds = table[:, 0].astype(np.int64)
    else:
        raise MoleculeError(f"edge_attr with {table.shape[1]} columns, expected codes or one-hot")
    if len(kinds) and not 0 <= kinds.min() <= kinds.max() < len(KINDS):
        raise MoleculeError("edge_attr holds a kind of bond that is not known")
    return kinds.tolist()


def _graph(fields: dict[str, Any], is_labelled: bool) -> tuple[Graph, tuple[float, ...]]:
    """Return a molecule and its labels."""
    with malformed_as_error():
        x, numbers, smiles = fields.get("x"), fields.get("z"), fields.get("smiles")
        is_coded = x is not None and x.ndim == 2 and x.shape[1] == CODES[0]
        x = x.astype(int) if is_coded and (x == x.astype(int)).all() else None
        if numbers is None and x is None:
            raise MoleculeError("neither z nor OGB's codes in x")
        numbers = x[:, 0] + 1 if numbers is None else numbers.reshape(-1).astype(int)
        position = fields.get("pos", fields.get("positions"))
        if position is None:
            raise MoleculeError("no positions")
        graph = Graph(
            numbers,
            position.astype(np.float64).reshape(len(numbers), 3),
            x,
            fields.get("edge_index"),
            fields.get("edge_attr"),
            smiles if isinstance(smiles, str) else "",
        )
        return graph, tuple(map(float, np.ravel(fields["y"]))) if is_labelled else ()


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
        return values[:, start:end].numpy()
    return values[start:end].numpy()


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a pickle, which the user trusts."""
    import torch  # takes seconds, and few formats need it

    try:
        stored = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle can raise anything
        raise MsdeError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(stored, tuple) or len(stored) < 2 or not isinstance(stored[1], dict):
        raise MsdeError(f"{path} is not (data, slices) of an InMemoryDataset")
    data, slices = stored[:2]
    if not slices:
        raise MsdeError(f"{path} has no slices, which say where its molecules begin")
    fields = graph_fields(data)
    return {name: value for name, value in fields.items() if value is not None}, slices


def _labels(fields: dict[str, Any]) -> tuple[Label, ...]:
    y = fields.get("y")
    count = 0 if y is None else (y.size(1) if y.dim() > 1 else 1)
    names = fields.get("name") or [""]
    if count == len(QM9) and str(names[0]).startswith("gdb_"):
        return QM9
    return (Label("y"),) if count == 1 else tuple(Label(f"y_{i}") for i in range(count))
