"""GIN, the 2D encoder: a graph isomorphism network with bond features.

Xu et al. 2019, eq. 4.1; bond features as in Hu et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES, BOND_SIZES
from msde.config import GINConfig
from msde.data.batch import MoleculeBatch
from msde.model.encoders.base import Encoder
from msde.model.layers import (
    BatchNorm,
    CategoricalEmbedding,
    Dropout,
    EveryCombination,
    Linear,
    at_least_float32,
    numbered,
)
from msde.ops import EdgeCodes, Edges, gin_message, group_codes, sort_edges


class GINLayer(nn.Module):
    """MLP((1 + eps) h_i + sum over bonds j -> i of relu(h_j + bond embedding))."""

    def __init__(self, hidden_dim: int) -> None:
        """Make the layer's own bond embedding and MLP."""
        super().__init__()
        self.bond_embedding = EveryCombination(BOND_SIZES, hidden_dim)
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = numbered(
            {
                0: Linear(hidden_dim, 2 * hidden_dim),
                1: BatchNorm(2 * hidden_dim, relu=True),
                3: Linear(2 * hidden_dim, hidden_dim),
            }
        )

    def forward(
        self, h: Tensor, bonds: Edges, bond_codes: EdgeCodes, num_valid: Tensor | None = None
    ) -> Tensor:
        """Update the representations of atoms.

        Args:
            h: (num_atoms, hidden_dim), like the result.
            bonds: the bonds in both directions.
            bond_codes: the row of `bond_embedding` for each of them.
            num_valid: () the first atoms, which enter batch statistics; None: all of them.
        """
        table = self.bond_embedding()  # (60, hidden_dim), so one lookup a bond
        # Messages are summed in at least float32, also under autocast.
        messages = gin_message(at_least_float32(h), table, self.eps, bond_codes, bonds)
        hidden, norm, output = self.mlp
        return output(norm(hidden(messages), num_valid))


# How the outputs of all layers, (num_atoms, hidden_dim) each, give (num_atoms, output_dim).
READOUTS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "last": lambda layers: layers[-1],
    "concat": lambda layers: torch.cat(layers, dim=-1),
    "max": lambda layers: torch.stack(layers).amax(0),
    "sum": lambda layers: torch.stack(layers).sum(0),
}


class GIN(Encoder):
    """The 2D encoder: a function of atoms and bonds, never of positions."""

    def __init__(self, hidden_dim: int, config: GINConfig) -> None:
        """Build `config.num_layers` layers of width `hidden_dim`."""
        super().__init__()
        self.chirality = config.chirality
        self.over_layers = config.readout
        concatenated = config.num_layers + 1 if config.readout == "concat" else 1
        self.output_dim = hidden_dim * concatenated
        self.atom_embedding = CategoricalEmbedding(ATOM_SIZES, hidden_dim)
        self.layers = nn.ModuleList(GINLayer(hidden_dim) for _ in range(config.num_layers))
        last = config.num_layers - 1
        self.norms = nn.ModuleList(BatchNorm(hidden_dim, n < last) for n in range(last + 1))
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Return the representation of each atom, (num_atoms, output_dim)."""
        kind, stereo, conjugated = batch.edge_attr.unbind(-1)  # (num_edges,) each
        # The row of bond_embedding, (num_edges,).
        bond_code = (kind * BOND_SIZES[1] + stereo) * BOND_SIZES[2] + conjugated
        bonds, order = sort_edges(batch.edge_index, batch.ptr, batch.num_atoms)
        bond_codes = group_codes(bond_code.index_select(0, order), math.prod(BOND_SIZES))
        x, num_valid = batch.x, batch.num_valid_atoms  # (num_atoms, 9) and ()
        if self.chirality != "tag":
            label = batch.cip if self.chirality == "cip" else batch.cip.clamp(max=1)
            x = torch.cat([x[:, :1], label.unsqueeze(-1), x[:, 2:]], dim=-1)  # (num_atoms, 9)
        h = [self.atom_embedding(x)]  # (num_atoms, hidden_dim) each
        for layer, norm in zip(self.layers, self.norms, strict=True):
            updated = layer(h[-1], bonds, bond_codes, num_valid)
            h.append(self.dropout(norm(updated, num_valid)))
        return READOUTS[self.over_layers](h)
