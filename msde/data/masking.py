"""Training may see a part of a molecule: one conformer, a subgraph, or all but the hydrogens.

Subgraph masking (Liu et al. 2023): start at a random atom and add random neighbours of the atoms
taken so far; where a fragment of the molecule is exhausted, go on at a random atom of the others.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from msde import philox
from msde.chem.vocabulary import (
    ATOM_VOCABULARY,
    BOND_STEREO,
    CHIRALITY,
    E_OR_Z,
    FORMAL_CHARGE,
    LEAST_CHARGE,
    NUM_HS,
)
from msde.data.codec import MoleculeColumns
from msde.ops import words
from msde.philox import Key, Stream

_TAGS = ATOM_VOCABULARY["chirality"]
_OTHER = {"CHI_TETRAHEDRAL_CW": "CHI_TETRAHEDRAL_CCW", "CHI_TETRAHEDRAL_CCW": "CHI_TETRAHEDRAL_CW"}
MIRRORED = np.array([_TAGS.index(_OTHER.get(tag, tag)) for tag in _TAGS])  # of each code


def draw_conformers(uid: Tensor, num_conformers: Tensor, key: Key) -> Tensor:
    """Draw the number of a conformer of each molecule, (num_molecules,) int64, by (key, uid) alone.

    Args:
        uid: (num_molecules,) int64, the bits of the molecules' 64-bit ids.
        num_conformers: (num_molecules,) int64, how many each has.
    """
    return words(key, Stream.CONFORMER, uid)[:, 0] * num_conformers >> 32


def choose_conformers(columns: MoleculeColumns, key: Key) -> MoleculeColumns:
    """Keep one conformer of each molecule, that of `draw_conformers`; they must have no forces."""
    if (columns.num_conformers == 1).all():
        return columns
    conformers = torch.from_numpy(columns.num_conformers.astype(np.int64))
    drawn = draw_conformers(philox.signed(columns.uid), conformers, key)
    return columns.with_conformers(drawn.numpy())


def mask_columns(columns: MoleculeColumns, ratio: float, key: Key) -> MoleculeColumns:
    """Keep int(n (1 - ratio)) + 1 connected atoms of each molecule of n atoms.

    Bonds are those among the atoms that are kept, extended pairs those of the whole molecule among
    them, and positions are centred afterwards. The choice depends on (key, uid) alone.
    """
    return columns if ratio == 0 else _keep(columns, _grow(columns, ratio, key))


def drop_hydrogens(columns: MoleculeColumns, share: float, key: Key) -> MoleculeColumns:
    """Remove the hydrogens of a random share of the molecules, as if converted without them.

    Those stay that RDKit keeps, too: with a charge, bridging, bonded to hydrogen or a dummy alone,
    and those that E or Z of a double bond refers to, as of an imine. The
    number of hydrogens is a feature of the atoms that they were bonded to. The chirality tag refers
    to the order of bonds, a hydrogen that is no atom being the last: so it changes where an odd
    number of bonds follow that of the hydrogen. The choice depends on (key, uid) alone.
    """
    if share == 0:
        return columns
    drawn = philox.words(key, Stream.HYDROGENS, philox.signed(columns.uid)).numpy()[:, 0]
    ends = _neighbours(columns)
    degree = np.bincount(ends[:, 0], minlength=len(columns.z))
    neutral = columns.x[:, FORMAL_CHARGE] == -LEAST_CHARGE
    plain = (columns.z == 1) & (degree == 1) & neutral
    plain &= np.repeat(drawn < share * 2.0**32, columns.num_atoms)
    labelled = np.tile(np.isin(columns.bond_attr[:, BOND_STEREO], E_OR_Z), 2)
    refers = np.zeros(len(columns.z), bool)  # of the ends of such bonds
    refers[ends[labelled, 0]] = True
    keeps = (columns.z <= 1) | (refers & (degree == 2))
    leaving = ends[plain[ends[:, 0]] & ~keeps[ends[:, 1]]]
    kept = np.ones(len(columns.z), bool)
    kept[leaving[:, 0]] = False
    x = columns.x.copy()
    lost = np.bincount(leaving[:, 1], minlength=len(x))
    x[:, NUM_HS] = np.minimum(x[:, NUM_HS] + lost, len(ATOM_VOCABULARY["num_hs"]) - 1)
    to_lost = ~kept[ends[:, 1]]
    passed = _bonds_after(ends, degree)[to_lost]
    turned = np.bincount(ends[to_lost, 0], weights=passed, minlength=len(x)) % 2 == 1
    x[turned, CHIRALITY] = MIRRORED[x[turned, CHIRALITY]]
    return _keep(dataclasses.replace(columns, x=x), kept)


def _bonds_after(ends: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """Return how many bonds of its first atom follow each bond, in the order of all bonds.

    Args:
        ends: (2 * num_bonds, 2) of `_neighbours`.
        degree: (num_atoms,) bonds of each atom.
    """
    bond = np.tile(np.arange(len(ends) // 2), 2)
    order = np.lexsort((bond, ends[:, 0]))
    after = np.empty(len(ends), np.int64)
    after[order] = np.repeat(np.cumsum(degree), degree) - 1 - np.arange(len(ends))
    return after


def _keep(columns: MoleculeColumns, kept: np.ndarray) -> MoleculeColumns:
    """Return the molecules with some of their atoms, (num_atoms,) bool, and what is among them."""
    atoms = columns.num_atoms.astype(np.int64)
    first = columns.starts("z")  # (num_molecules,)
    place = np.cumsum(kept) - 1  # (num_atoms,) number of a kept atom among all kept ones
    num_kept = np.add.reduceat(kept, first).astype("<u4")
    place = place - np.repeat(np.cumsum(num_kept, dtype=np.int64) - num_kept, atoms)

    def restrict(
        index: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a mask of the pairs that stay, these renumbered, and their number by molecule."""
        absolute = index + np.repeat(first, counts)[:, None]  # (num_pairs, 2)
        survives = kept[absolute].all(1)
        owner = np.repeat(np.arange(len(columns)), counts)
        number = np.bincount(owner[survives], minlength=len(columns)).astype("<u4")
        return survives, place[absolute[survives]].astype(index.dtype), number

    bonds, bond_index, num_bonds = restrict(columns.bond_index, columns.num_bonds)
    degree = columns.extended_degree
    target = np.arange(len(degree)) - np.repeat(first, atoms)  # (num_atoms,) within the molecule
    edges = np.stack([columns.extended_source, np.repeat(target, degree)], axis=1)
    survive, extended_index, num_extended = restrict(edges, columns.num_extended)
    all_targets = np.repeat(np.arange(len(degree)), degree)
    extended_degree = np.bincount(all_targets[survive], minlength=len(degree))[kept]
    conformers = columns.num_conformers.astype(np.int64)
    # A molecule's conformers lie one after another, each with all its atoms.
    of_conformer = np.repeat(np.arange(len(columns)), conformers)
    rows = np.concatenate([np.arange(first[m], first[m] + atoms[m]) for m in of_conformer])
    pos = columns.pos[kept[rows]]
    forces = columns.forces[:0]  # forces on a subgraph alone are not known
    return dataclasses.replace(
        columns,
        num_atoms=num_kept,
        num_bonds=num_bonds,
        num_extended=num_extended,
        z=columns.z[kept],
        x=columns.x[kept],
        cip=columns.cip[kept],
        bond_index=bond_index,
        bond_attr=columns.bond_attr[bonds],
        extended_source=extended_index[:, 0].astype(columns.extended_source.dtype),
        extended_degree=extended_degree.astype(degree.dtype),
        pos=_centred(pos, np.repeat(num_kept, conformers)),
        forces=forces,
        num_forces=np.zeros_like(columns.num_forces),
    )


def _neighbours(columns: MoleculeColumns) -> np.ndarray:
    """Return each atom and neighbour, (2 * num_bonds, 2), numbered through all molecules."""
    bonds = columns.bond_index + np.repeat(columns.starts("z"), columns.num_bonds)[:, None]
    return np.concatenate([bonds, bonds[:, ::-1]])


def _grow(columns: MoleculeColumns, ratio: float, key: Key) -> np.ndarray:
    """Choose the atoms to keep, (num_atoms,) bool; the loop adds one atom to each molecule."""
    atoms = columns.num_atoms.astype(np.int64)
    first = columns.starts("z")
    molecule = np.repeat(np.arange(len(atoms)), atoms)  # (num_atoms,)
    target = np.minimum((atoms * (1 - ratio)).astype(np.int64) + 1, atoms)
    source, neighbour = _neighbours(columns).T  # (2 * num_bonds,) each
    steps = int(target.max())
    drawn = philox.words(
        key, Stream.MASKING, philox.signed(columns.uid), 0, steps
    ).numpy()  # (num_molecules, steps)

    taken = np.zeros(len(molecule), bool)
    reached = np.zeros(len(molecule), bool)
    for step in range(steps):
        growing = step < target  # (num_molecules,)
        choice = reached & ~taken
        exhausted = np.add.reduceat(choice, first) == 0
        choice |= ~taken & exhausted[molecule]
        # The k-th atom to choose from, with k uniform.
        count = np.add.reduceat(choice, first)
        k = drawn[:, step] * count >> 32
        before = np.cumsum(choice)
        rank = before - 1 - np.repeat(before[first] - choice[first], atoms)
        new = choice & (rank == k[molecule]) & growing[molecule]
        taken |= new
        reached[neighbour[new[source]]] = True
    return taken


def _centred(pos: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Subtract its mean from each conformer, whose rows are `counts` consecutive ones."""
    first = np.cumsum(counts, dtype=np.int64) - counts
    mean = np.add.reduceat(pos.astype(np.float64), first) / counts[:, None]
    return (pos - np.repeat(mean, counts, axis=0)).astype(pos.dtype)
