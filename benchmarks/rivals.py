"""What the published implementation does to a molecule, as our measurements' other side.

A re-statement in our words of the published sequence of operations (chao1224/MoleculeSDE,
Geom3D/datasets): the same calls into RDKit, OGB and PyTorch Geometric in the same order, so that
they cost what they cost there. Where these call torch-sparse, which has to be compiled, the tensor
operations of its release 0.6.18 stand in its place, which leaves out what TorchScript costs there.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from ogb.utils.features import atom_to_feature_vector, bond_to_feature_vector
from rdkit import Chem
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.utils import remove_self_loops

# torch turns COO matrices to CSR for a product, and says that CSR is in beta.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support")


def published_featuriser(mol: Chem.Mol) -> Data:
    """Turn a molecule with a conformer into OGB features, bonds both ways and positions."""
    atoms, seen = [], Counter()
    for atom in mol.GetAtoms():
        codes = atom_to_feature_vector(atom)
        number = atom.GetAtomicNum()
        if number - 1 != codes[0]:
            raise ValueError(f"atomic number {number} is outside the vocabulary")
        seen[number] += 1
        atoms.append(codes)
    x = torch.tensor(np.array(atoms), dtype=torch.long)  # (num_atoms, 9)
    positions = torch.Tensor(mol.GetConformers()[0].GetPositions())  # (num_atoms, 3)

    edge_index = torch.empty((2, 0), dtype=torch.long)
    edge_attr = torch.empty((0, 3), dtype=torch.long)
    if len(mol.GetBonds()) > 0:
        edges, attributes = [], []
        for bond in mol.GetBonds():
            begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            codes = bond_to_feature_vector(bond)
            edges.append((begin, end))
            attributes.append(codes)
            edges.append((end, begin))
            attributes.append(codes)
        edge_index = torch.tensor(np.array(edges).T, dtype=torch.long)  # (2, num_edges)
        edge_attr = torch.tensor(np.array(attributes), dtype=torch.long)  # (num_edges, 3)
    return Data(x=x, positions=positions, edge_index=edge_index, edge_attr=edge_attr)


def published_get(data: Data) -> Data:
    """Make the item that training gets: a fresh Data, its graph extended, its positions centred."""
    item = Data()
    for key in data.keys():
        item[key] = data[key][:]
    edge_index, num_atoms = item.edge_index, item.num_nodes
    for _ in range(2):
        ones = edge_index.new_ones(edge_index.shape[1], dtype=torch.float)
        squared, values = _product(edge_index, ones, num_atoms)
        values.fill_(0)
        squared, _ = remove_self_loops(squared, values)
        edge_index = _coalesced(torch.cat([edge_index, squared], dim=1), num_atoms)
    item.extended_edge_index = edge_index
    item.positions = item.positions - item.positions.mean(dim=0)
    return item


def _product(index: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Square a sparse matrix as torch-sparse's spspmm does."""
    factors = []
    for _ in range(2):
        _check_bounds(index, size)
        index = torch.stack([index[0], index[1]])
        factors.append(torch.sparse_coo_tensor(index, values, (size, size), check_invariants=False))
    product = torch.sparse.mm(*factors)
    row, col = product._indices()
    return torch.stack([row, col]), product._values()


def _coalesced(index: Tensor, size: int) -> Tensor:
    """Sort indices and drop what is there twice, as torch-sparse's coalesce does."""
    _check_bounds(index, size)
    row, col = index
    flat = col.new_zeros(len(col) + 1)
    flat[1:] = row
    flat[1:] *= size
    flat[1:] += col
    if (flat[1:] < flat[:-1]).any():
        _, order = flat[1:].sort()
        row, col = row[order], col[order]
    flat = col.new_full((len(col) + 1,), -1)
    flat[1:] = size * row + col
    mask = flat[1:] > flat[:-1]
    if not mask.all():
        row, col = row[mask], col[mask]
    return torch.stack([row, col])


def _check_bounds(index: Tensor, size: int) -> None:
    if index.numel() and not (int(index[0].max()) < size and int(index[1].max()) < size):
        raise ValueError("an index is out of bounds")


class _Items(Dataset):
    """The published data set's work for each item, over graphs in memory."""

    def __init__(self, graphs: Sequence[Data]):
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, place: int) -> Data:
        return published_get(self.graphs[place])


def published_loader(graphs: Sequence[Data], batch_size: int = 256) -> DataLoader:
    """Load batches as the published training does by default: shuffled, in the main process."""
    return DataLoader(_Items(graphs), batch_size=batch_size, shuffle=True, num_workers=0)
