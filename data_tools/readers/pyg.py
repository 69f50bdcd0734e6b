"""PyTorch Geometric's processed data sets, `.pt`: its QM9, MoleculeSDE's PCQM4Mv2 and their kind.

Such a file is `(data, slices)` of an InMemoryDataset, with the class as a third part or not, or a
list of graphs, and a pickle. Required are `pos` (or `positions`) and atomic numbers, `z` or the
first column of the codes in `x` (`parsing.graphs` tells OGB's from those of `from_smiles`). Bonds
come from, in this order: `edge_index` with `smiles`; `edge_index` with `edge_attr`, either codes or
one-hot rows of the four kinds (charges and hydrogens are then in `x`); `edge_index`, bond orders
perceived; the positions alone. Where a SMILES fits the edges in several ways, the codes in
`edge_attr` and `x` decide, else the order of atoms and the lengths of bonds. Graphs with `smiles`
and no positions are read as the SMILES alone, and conformers are made.

Labels are `y` and energies; these and forces are known by their names (`parsing.quantities`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import GEOMETRY, Options
from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned, attempt
from ..parsing.graphs import (
    Coding,
    charges_and_hydrogens,
    choose_coding,
    has_codes,
    is_torch_file,
    kinds_of_pairs,
    load_graphs,
    mol_of_codes,
)
from ..parsing.labels import (
    NOT_CHOSEN,
    choose_labels,
    conversions,
    scale,
    units_of,
    value_of,
    with_units,
)
from ..parsing.perception import Known, bonds_of_smiles, connect, order_bonds, parsed_geometry
from ..parsing.quantities import CHARGE, Quantities, charge_of, choose_quantities, is_energy
from ..parsing.reader import malformed_as_error
from . import smiles as smiles_format

# The targets of torch_geometric.datasets.QM9, in its order.
QM9 = (
    *(Label("mu", "D"), Label("alpha", "a0^3"), Label("homo", "eV"), Label("lumo", "eV")),
    *(Label("gap", "eV"), Label("r2", "a0^2"), Label("zpve", "eV"), Label("u0", "eV")),
    *(Label("u298", "eV"), Label("h298", "eV"), Label("g298", "eV"), Label("cv", "cal/mol/K")),
    *(Label(f"{name}_atom", "eV") for name in ("u0", "u298", "h298", "g298")),
    *(Label(name, "GHz") for name in ("A", "B", "C")),
)
SAMPLE = 1000  # graphs that decide what codes mean
POSITIONS = ("pos", "positions")
READ = {*POSITIONS, "z", "x", "edge_index", "edge_attr", "smiles", "name", "y", *CHARGE}


@dataclass(frozen=True)
class Fields:
    """What is read of the graphs of a file."""

    labels: tuple[Label, ...]
    num_targets: int  # numbers in `y`
    places: tuple[int, ...]  # of the labels among `y` and the energies
    factors: tuple[float, ...]
    energies: tuple[str, ...]
    quantities: Quantities
    coding: Coding | None


@dataclass(frozen=True)
class Graph:
    """The fields of one molecule."""

    numbers: np.ndarray  # (num_atoms,)
    position: np.ndarray | None  # (num_atoms, 3) A; None: the SMILES is all that is read
    x: np.ndarray | None  # (num_atoms, 9), codes
    edge_index: np.ndarray | None  # (2, num_edges)
    edge_attr: np.ndarray | None  # (num_edges, ...)
    smiles: str
    forces: np.ndarray | None
    charge: int
    coding: Coding | None
    notes: tuple[str, ...] = ()


class Reader(BaseReader):
    suffixes = (".pt", ".pth")
    follows = (*GEOMETRY, "conformers")

    def recognises(self, path: Path) -> bool:
        """Return whether suffix and first bytes are those of torch.save; nothing is loaded."""
        return super().recognises(path) and is_torch_file(path)

    def is_pickle(self, name: str) -> bool:
        return True

    def __init__(self, options: Options) -> None:
        """Keep the options, and later the graphs of the last file that was loaded."""
        super().__init__(options)
        self._load = functools.lru_cache(maxsize=1)(load_graphs)

    def scan(self, path: Path) -> Iterator[Scanned]:
        graphs, fields = self._load(path), self.survey(path)[1]
        for index in range(len(graphs)):
            name, graph, y = "", *attempt(self._graph, graphs, index, fields)
            if isinstance(graph, tuple):
                graph, name = graph
            yield index + 1, name, graph, scale(y, fields.factors)

    def build(self, raw: RawMolecule) -> Parsed:
        graph = raw.payload
        if graph.position is None:
            reader = smiles_format.Reader(self.options)
            return reader.build(dataclasses.replace(raw, payload=graph.smiles))
        mol, origin, notes = _molecule(graph)
        forces = None if graph.forces is None else graph.forces[None]
        parsed = parsed_geometry(mol, graph.position[None], self.options, raw.y, forces, origin)
        return dataclasses.replace(parsed, notes=graph.notes + notes)

    def survey(self, path: Path) -> tuple[Facts, Fields]:
        """Return what the first graphs show of a file."""
        graphs = self._load(path)
        if not len(graphs):
            raise MsdeError(f"no molecules in {path}")
        try:
            sample = list(graphs[:SAMPLE])
        except (IndexError, TypeError, ValueError) as error:
            raise MsdeError(f"{path}: slices and data do not fit: {error}") from error
        if any(_position(one) is not None for one in sample):
            self.options.refuse(["conformers"], f"{path}, which has geometry")
        first: dict[str, Any] = {}  # the first value of each field
        vectors: dict[str, None] = {}
        for one in sample:
            for name, value in one.items():
                if value is not None:
                    first.setdefault(name, value)
                    if name not in READ and np.shape(value) == (_num_atoms(one), 3):
                        vectors[name] = None
        scalars = [n for n, v in first.items() if n != "y" and np.size(v) == 1 and _is_numeric(v)]
        found = choose_quantities(path, self.options, scalars, list(vectors))
        energies = tuple(name for name in scalars if is_energy(name) or name == found.energy)
        targets = _targets(first)
        every = (*targets, *map(Label, energies))
        names = [label.name for label in every]
        labels = choose_labels(path, self.options, names, lambda name: True, "label")
        known = units_of(every)
        labels, factors = with_units(path, labels, known)
        unit = units_of(labels).get(found.energy or "", "")
        taken = [("SMILES", "smiles")] if "smiles" in first else []
        taken += [("name", "name")] if "name" in first else []
        taken += [("charge", name) for name in CHARGE if name in first]
        read = {*READ, found.forces, *names}
        left = [(n, "not read") for n in first if n not in read]
        left += [(n, NOT_CHOSEN) for n in names if n not in units_of(labels)]
        facts = Facts(
            labels,
            None if found.forces is None else f"{unit}/A" if unit else "",
            (*found.notes(), *conversions(labels, known)),
            (*taken, *found.taken(labels)),
            tuple(left),
        )
        places = tuple(names.index(label.name) for label in labels)
        coding = choose_coding(path, [one for one in sample if _position(one) is not None])
        return facts, Fields(labels, len(targets), places, factors, energies, found, coding)

    def _graph(
        self, graphs: Sequence[dict[str, Any]], index: int, read: Fields
    ) -> tuple[tuple[Graph, str], tuple[float, ...]]:
        """Return a molecule with its name, and its labels."""
        with malformed_as_error():
            fields = graphs[index]
            name, text = fields.get("name"), fields.get("smiles")
            x = fields["x"].astype(np.int64) if has_codes(fields) else None
            position = _position(fields)
            text = text if isinstance(text, str) else ""
            if position is None and not text:
                raise MoleculeError("no positions (pos) and no SMILES (smiles)")
            numbers = fields.get("z")
            if position is None:
                numbers = np.zeros(0, int)
            elif numbers is not None:
                numbers = numbers.reshape(-1).astype(int)
            elif x is not None and read.coding is not None:
                numbers = x[:, 0] + read.coding.offset
            else:
                raise MoleculeError("no atomic numbers: neither z nor codes in x")
            forces = fields.get(read.quantities.forces or "")
            graph = Graph(
                numbers,
                None if position is None else position.astype(np.float64).reshape(len(numbers), 3),
                x,
                fields.get("edge_index"),
                fields.get("edge_attr"),
                text,
                None if forces is None else read.quantities.sign * forces.astype(np.float64),
                charge_of(fields, self.options.charge or 0),
                read.coding,
                read.quantities.lacking(forces),
            )
            values = _values_of_y(fields.get("y"), read.num_targets)
            values += [value_of(np.reshape(fields.get(n), ()).item()) for n in read.energies]
            y = tuple(values[place] for place in read.places)
            return (graph, name if isinstance(name, str) else ""), y


def _molecule(graph: Graph) -> tuple[Chem.Mol, Origin, tuple[str, ...]]:
    """Return a molecule without conformers, where its bonds come from, and notes on them."""
    if graph.edge_index is None:
        bonds = connect(graph.numbers, graph.position)
        return order_bonds(graph.numbers, bonds, graph.charge), Origin.BONDS_PERCEIVED, ()
    ends = graph.edge_index.T.tolist()
    if any(not 0 <= end < len(graph.numbers) for pair in ends for end in pair):
        raise MoleculeError("edge_index holds a number that is not of an atom")
    bonds = tuple(sorted({(min(pair), max(pair)) for pair in ends if pair[0] != pair[1]}))
    if graph.smiles:
        mol, notes = bonds_of_smiles(
            graph.numbers, bonds, graph.smiles, graph.position, _known(graph)
        )
        return mol, Origin.SOURCE, notes
    if graph.edge_attr is None:
        return order_bonds(graph.numbers, bonds, graph.charge), Origin.BONDS_PERCEIVED, ()
    mol = mol_of_codes(graph.numbers, graph.x, graph.edge_index, graph.edge_attr, graph.coding)
    return mol, Origin.SOURCE, ()


def _known(graph: Graph) -> Known | None:
    """Return what the codes of a graph say, or None: it has none, or their meaning is not known."""
    if graph.edge_index is None or graph.edge_attr is None:
        return None
    try:
        kinds = kinds_of_pairs(graph.edge_index, graph.edge_attr, graph.coding)
    except (MoleculeError, ValueError):
        return None
    return Known(kinds, () if graph.x is None else tuple(charges_and_hydrogens(graph.x)))


def _position(fields: Mapping[str, Any]) -> Any:
    return next((fields[name] for name in POSITIONS if fields.get(name) is not None), None)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "dtype", np.dtype("O")).kind in "iuf"


def _num_atoms(fields: Mapping[str, Any]) -> int:
    known = [fields[name] for name in ("z", "x", *POSITIONS) if fields.get(name) is not None]
    return max(map(len, known), default=0)


def _values_of_y(y: Any, num_targets: int) -> list[float]:
    """Return the numbers of `y`, NaN where a graph has none.

    Raises:
        MoleculeError: they are more or fewer than in the first graph that has any.
    """
    if y is None:
        return [math.nan] * num_targets
    values = [float(value) for value in np.ravel(y)]
    if len(values) != num_targets:
        raise MoleculeError(f"y has {len(values)} numbers, expected {num_targets}")
    return values


def _targets(first: Mapping[str, Any]) -> tuple[Label, ...]:
    """Return the labels that are in `y`."""
    count = np.size(first["y"]) if first.get("y") is not None else 0
    if count == len(QM9) and str(first.get("name", "")).startswith("gdb_"):
        return QM9
    return (Label("y"),) if count == 1 else tuple(Label(f"y_{i}") for i in range(count))
