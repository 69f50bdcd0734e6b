"""Statistics of a sample of a data set's molecules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.record import Origin
from msde.chem.vocabulary import ATOM_SIZES, FORMAL_CHARGE, LEAST_CHARGE
from msde.data import codec
from msde.data.codec import MoleculeColumns
from msde.data.shards import ShardDataset

from ..parsing.chemistry import symbol_of
from .parts import count_origins

SAMPLE_BLOCKS = 128  # at most: 131,072 molecules, which take a few seconds
FAR = 10.0  # A; the usual cutoff of networks on positions
PAIR_MOLECULES = 4096  # whose pairs of atoms are measured: their number grows with the square


@dataclass(frozen=True)
class Statistics:
    """Numbers about a sample of a data set's molecules."""

    manifest: dict[str, Any]
    sampled: int
    counts: dict[str, np.ndarray]  # of each molecule: atoms, bonds, pairs, ...
    elements: dict[str, int]  # atoms of each element, the most common first
    bond_lengths: dict[str, np.ndarray]  # A, by the symbols and type of bond, the most common first
    distances: np.ndarray  # A, of pairs of atoms
    labels: np.ndarray  # (sampled, num_labels), NaN where missing
    origins: dict[str, int]  # molecules with each flag

    @property
    def far_share(self) -> float:
        """Share of the pairs of atoms that are further apart than FAR."""
        return float((self.distances > FAR).mean()) if len(self.distances) else 0.0


def statistics(root: Path) -> Statistics:
    """Return the statistics of a data set.

    Raises:
        MsdeError: it is missing.
        DataDamaged: a block is damaged.
    """
    dataset = ShardDataset(root)
    wanted = min(SAMPLE_BLOCKS, dataset.num_blocks)
    blocks = np.unique(np.linspace(0, dataset.num_blocks - 1, wanted).astype(int))
    columns = codec.concatenate([dataset.read_block(int(b)) for b in blocks])
    atoms = columns.num_atoms.astype(np.int64)
    charge = np.zeros(len(columns), np.int64)
    # Of each atom; the last code stands for all charges that the vocabulary does not list.
    charges = columns.x[:, FORMAL_CHARGE].astype(np.int64) + LEAST_CHARGE
    molecule = np.repeat(np.arange(len(columns)), atoms)
    np.add.at(charge, molecule, charges)
    beyond = np.zeros(len(columns), bool)  # with an atom of another charge
    beyond[molecule[columns.x[:, FORMAL_CHARGE] == ATOM_SIZES[FORMAL_CHARGE] - 1]] = True
    of_charge = f"charge (not of {beyond.sum()} beyond +-5)" if beyond.any() else "charge"
    return Statistics(
        manifest=dataset.manifest,
        sampled=len(columns),
        counts={
            "atoms": atoms,
            "bonds": columns.num_bonds.astype(np.int64),
            "extended edges": columns.num_extended.astype(np.int64),
            "pairs of atoms": atoms * (atoms - 1) // 2,
            "conformers": columns.num_conformers.astype(np.int64),
            **({} if beyond.all() else {of_charge: charge[~beyond]}),
        },
        elements=_elements(columns),
        bond_lengths=_bond_lengths(columns),
        distances=_distances(columns),
        labels=columns.y,
        origins={k.replace("_", " "): n for k, n in count_origins(columns).items()},
    )


def _elements(columns: MoleculeColumns) -> dict[str, int]:
    number, count = np.unique(columns.z, return_counts=True)
    order = np.argsort(-count, kind="stable")
    return {symbol_of(number[i]): int(count[i]) for i in order}


def _bond_lengths(columns: MoleculeColumns) -> dict[str, np.ndarray]:
    has_geometry = np.repeat(columns.origin & Origin.NO_GEOMETRY == 0, columns.num_bonds)
    bond = columns.bond_index + np.repeat(columns.starts("z"), columns.num_bonds)[:, None]
    bond, kind = bond[has_geometry], columns.bond_attr[has_geometry, 0]
    pos = columns.with_conformers(np.zeros(len(columns), np.int64)).pos  # the first of each
    length = np.linalg.norm(pos[bond[:, 0]] - pos[bond[:, 1]], axis=1)
    z = np.sort(columns.z[bond], axis=1).astype(np.int64)
    code = (z[:, 0] * 256 + z[:, 1]) * 8 + kind
    found, count = np.unique(code, return_counts=True)
    lengths = {}
    for value in found[np.argsort(-count, kind="stable")]:
        pair, mark = int(value) // 8, "-=#:?"[min(int(value) % 8, 4)]
        ends = symbol_of(pair // 256), symbol_of(pair % 256)
        name = mark.join(ends[::-1] if ends[0] == "H" else ends)
        lengths[name] = length[code == value]
    return lengths


def _distances(columns: MoleculeColumns) -> np.ndarray:
    """Return the distances of all pairs of atoms in some of the molecules, evenly spaced."""
    places = np.flatnonzero(columns.origin & Origin.NO_GEOMETRY == 0)
    places = places[:: max(1, len(places) // PAIR_MOLECULES)]
    found = [np.zeros(0, np.float32)]
    for place in places:
        pos = columns.record(int(place)).pos[0]
        i, j = np.triu_indices(len(pos), 1)
        found.append(np.linalg.norm(pos[i] - pos[j], axis=1))
    return np.concatenate(found)
