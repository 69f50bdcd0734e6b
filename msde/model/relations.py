"""How the atoms of a molecule are related in its topology: hops, bonds, cis and trans, chirality.

All functions keep fixed shapes, so that a GPU's host need not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msde.chem.vocabulary import ATOM_VOCABULARY, BOND_VOCABULARY, CHIRALITY, DEGREE, NUM_HS
from msde.data.batch import MoleculeBatch
from msde.data.ragged import complete_edges, offsets
from msde.ops import Edges

MAX_HOPS = 10  # atoms further apart, and those of other fragments, share the last code
NEIGHBOURS = 4  # most neighbours of a stereocentre
# Codes of a pair: hops 0..MAX_HOPS + 1; bond type + 1, or 0 for none; none, cis or trans.
RELATION_SIZES = [MAX_HOPS + 2, len(BOND_VOCABULARY["type"]) + 1, 3]
_CLOCKWISE = ATOM_VOCABULARY["chirality"].index("CHI_TETRAHEDRAL_CW")
_COUNTERCLOCKWISE = ATOM_VOCABULARY["chirality"].index("CHI_TETRAHEDRAL_CCW")
_NO_STEREO = BOND_VOCABULARY["stereo"].index("STEREONONE")
_ANY_STEREO = BOND_VOCABULARY["stereo"].index("STEREOANY")


@dataclass(frozen=True)
class Relations:
    """The directed edges between all atoms of each molecule, their codes, and the stereocentres."""

    edges: Edges
    codes: Tensor  # (num_edges, 3) int64, below RELATION_SIZES
    neighbours: Tensor  # (num_atoms, 4) int64: the bonded atoms in the order of the bonds
    sign: Tensor  # (num_atoms,) of the signed volume of a stereocentre's neighbours, 0 of others
    has_four: Tensor  # (num_atoms,) bool: four neighbours, not three


def relations(batch: MoleculeBatch) -> Relations:
    """Return the relations of a batch's atoms.

    Cis and trans of double bonds that have a label are taken from the positions of the batch, which
    fulfil the label: E and Z alone do not say which neighbours they refer to.
    """
    edges = Edges(
        complete_edges(batch.atoms_per_graph, batch.num_atoms, 2 * batch.pair_index.shape[1]),
        offsets(batch.atoms_per_graph[batch.batch] - 1),
        batch.ptr,
        batch.num_valid_atoms,
    )
    padded = batch.pairs.padded
    size, place = padded.size, padded.atom  # place: (num_atoms,) in the padded layout
    row = batch.atom_in_graph

    def spread(index: Tensor, values: Tensor) -> Tensor:
        """Return (num_graphs, size, size) int64 with `values` at the pairs of atoms `index`."""
        dense = values.new_zeros(batch.num_graphs * size * size)
        dense[place[index[0]] * size + row[index[1]]] = values
        return dense.view(-1, size, size)

    bonds = spread(batch.edge_index, batch.edge_attr[:, 0] + 1)
    neighbours, num_neighbours = _neighbours(batch)
    quadruples, kinds = _cis_trans(batch, neighbours)
    at = place[edges.index[0]] * size + row[edges.index[1]]  # (num_edges,)
    sides = bonds.new_zeros(batch.num_graphs * size * size)
    first, last = quadruples
    # Where both cis and trans claim a pair, as in small rings, the larger code stays.
    sides.scatter_reduce_(0, place[first] * size + row[last], kinds, "amax")
    dense = [_hops(bonds > 0).flatten(), bonds.flatten(), sides]
    tag, hydrogens = batch.x[:, CHIRALITY], batch.x[:, NUM_HS]
    sign = (tag == _COUNTERCLOCKWISE).long() - (tag == _CLOCKWISE).long()
    # One that masking took a neighbour from is none: its label refers to the order of all of them.
    is_whole = num_neighbours + hydrogens == batch.x[:, DEGREE]
    is_centre = is_whole & (num_neighbours >= 3) & (num_neighbours <= NEIGHBOURS)
    return Relations(
        edges,
        torch.stack([codes.index_select(0, at) for codes in dense], dim=1),
        neighbours,
        (sign * is_centre).to(batch.pos.dtype),
        num_neighbours == NEIGHBOURS,
    )


def _hops(adjacent: Tensor) -> Tensor:
    """Return the number of bonds between atoms, capped at MAX_HOPS + 1; (num_graphs, size, size).

    Args:
        adjacent: bool, like the result.
    """
    one = adjacent.float()
    near = torch.eye(adjacent.shape[1], device=one.device).expand_as(one)
    hops = torch.full_like(adjacent, MAX_HOPS + 1, dtype=torch.int64)
    hops = hops.masked_fill(near > 0, 0)
    for count in range(1, MAX_HOPS + 1):
        near = ((near + near @ one) > 0).float()
        hops = torch.where((near > 0) & (hops > count), count, hops)
    return hops


def _neighbours(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """Return the first 4 bonded atoms of each in the order of the bonds, and how many it has.

    Places of missing neighbours hold the atom itself.

    Returns:
        (num_atoms, 4) and (num_atoms,).
    """
    target, order = batch.edge_index[1].sort(stable=True)
    atoms = torch.arange(batch.num_atoms, device=target.device)
    first = torch.searchsorted(target, atoms)  # (num_atoms,)
    counts = torch.searchsorted(target, atoms, right=True) - first
    rank = torch.arange(len(target), device=target.device) - first[target]
    table = atoms.unsqueeze(1).repeat(1, NEIGHBOURS + 1)  # the last column takes the others
    table[target, rank.clamp(max=NEIGHBOURS)] = batch.edge_index[0][order]
    return table[:, :NEIGHBOURS].contiguous(), counts


def _cis_trans(batch: MoleculeBatch, neighbours: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the pairs of atoms across double bonds, and 1 for cis, 2 for trans, 0 for no label."""
    stereo = batch.edge_attr[:, 1]
    labelled = (stereo != _NO_STEREO) & (stereo != _ANY_STEREO)  # (num_bonds * 2,)
    i, j = batch.edge_index
    shape = (len(i), NEIGHBOURS, NEIGHBOURS)
    first = neighbours[i].unsqueeze(2).expand(shape)
    last = neighbours[j].unsqueeze(1).expand(shape)
    i, j = i.view(-1, 1, 1).expand(shape), j.view(-1, 1, 1).expand(shape)
    is_quadruple = (first != i) & (first != j) & (last != i) & (last != j) & (first != last)
    axis = batch.pos[j] - batch.pos[i]
    a = torch.linalg.cross(batch.pos[first] - batch.pos[i], axis)
    b = torch.linalg.cross(batch.pos[last] - batch.pos[j], axis)
    side = (a * b).sum(-1)
    kind = (side > 0).long() + 2 * (side < 0)  # neither without positions
    kind = kind * (is_quadruple & labelled.view(-1, 1, 1))
    return (first.flatten(), last.flatten()), kind.flatten()
