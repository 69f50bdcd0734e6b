"""PaiNN, a 3D encoder with equivariant vectors beside invariant scalars (Schuett et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import PaiNNConfig
from msde.data.batch import MoleculeBatch
from msde.model.layers import MLP, Linear, cosine_envelope, gaussians
from msde.ops import segment_sum

EPSILON = 1e-8  # under the root of a vector's norm, as published


class Message(nn.Module):
    """What an atom's neighbours add to its scalars and vectors, seen through filters."""

    def __init__(self, hidden_dim: int) -> None:
        """Make the network that turns a neighbour's scalars into what the filters weigh."""
        super().__init__()
        self.context = MLP([hidden_dim, hidden_dim, 3 * hidden_dim], "silu")

    def forward(
        self, q: Tensor, mu: Tensor, filters: Tensor, direction: Tensor, pair_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return q and mu with the messages added.

        Args:
            q: (num_atoms, hidden_dim) scalars.
            mu: (num_atoms, 3, hidden_dim) vectors.
            filters: (num_pairs, 3 * hidden_dim), the same in both directions.
            direction: (num_pairs, 3) unit vectors from the second atom of a pair to the first.
        """
        x = self.context(q)  # (num_atoms, 3 * hidden_dim)
        sent = mu
        first, second = pair_index
        for target, source, sign in ((first, second, 1), (second, first, -1)):
            weighed = filters.to(x.dtype) * x.index_select(0, source)
            dq, along, carried = weighed.chunk(3, dim=-1)  # (num_pairs, hidden_dim) each
            arrow = (sign * direction).to(x.dtype).unsqueeze(-1)  # (num_pairs, 3, 1)
            dmu = along.unsqueeze(1) * arrow
            dmu = dmu + carried.unsqueeze(1) * sent.index_select(0, source)
            q = q + segment_sum(dq, target, len(q))
            mu = mu + segment_sum(dmu, target, len(mu))
        return q, mu


class Mixing(nn.Module):
    """The update of an atom's scalars and vectors by each other."""

    def __init__(self, hidden_dim: int) -> None:
        """Make the maps of the vectors and the network that weighs them."""
        super().__init__()
        self.vectors = Linear(hidden_dim, 2 * hidden_dim, bias=False)
        nn.init.xavier_uniform_(self.vectors.weight)
        self.context = MLP([2 * hidden_dim, hidden_dim, 3 * hidden_dim], "silu")

    def forward(self, q: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return new q, (num_atoms, hidden_dim), and mu, (num_atoms, 3, hidden_dim)."""
        v, w = self.vectors(mu).chunk(2, dim=-1)  # (num_atoms, 3, hidden_dim) each
        norm = torch.sqrt(v.square().sum(1) + EPSILON)  # (num_atoms, hidden_dim)
        a, b, c = self.context(torch.cat([q, norm], dim=-1)).chunk(3, dim=-1)
        return q + a + c * (v * w).sum(1), mu + b.unsqueeze(1) * w


class PaiNN(nn.Module):
    """A 3D encoder; its scalars are E(3)-invariant, its vectors turn with the molecule."""

    def __init__(self, hidden_dim: int, config: PaiNNConfig) -> None:
        """Build `config.num_interactions` interactions of width `hidden_dim`."""
        super().__init__()
        # Hydrogen has code 0, which the published embedding pads with zeros for ever.
        padding = None if config.train_hydrogen else 0
        self.embedding = nn.Embedding(ATOM_SIZES[0], hidden_dim, padding_idx=padding)
        centres = torch.linspace(0, config.cutoff, config.num_gaussians)
        self.register_buffer("centres", centres, persistent=False)
        numbers = range(config.num_interactions)
        self.filter = Linear(config.num_gaussians, len(numbers) * 3 * hidden_dim)
        nn.init.xavier_uniform_(self.filter.weight)
        nn.init.zeros_(self.filter.bias)
        self.messages = nn.ModuleList(Message(hidden_dim) for _ in numbers)
        self.mixings = nn.ModuleList(Mixing(hidden_dim) for _ in numbers)

    def forward(self, batch: MoleculeBatch, pos: Tensor | None = None) -> Tensor:
        """Return the representation of each atom, (num_atoms, hidden_dim).

        Args:
            pos: (num_atoms, 3) positions in A, by default the batch's.
        """
        pos = batch.pos if pos is None else pos
        first, second = batch.pair_index
        # All pairs of a molecule, weighted zero beyond the cutoff: no neighbour search, and exact.
        difference = pos.index_select(0, first) - pos.index_select(0, second)  # (num_pairs, 3)
        distance = difference.norm(dim=-1)  # (num_pairs,)
        direction = difference / distance.clamp(min=EPSILON).unsqueeze(-1)
        cutoff = self.centres[-1]
        envelope = cosine_envelope(distance, cutoff) * (distance < cutoff)
        filters = self.filter(gaussians(distance, self.centres)) * envelope.unsqueeze(-1)
        q = self.embedding(batch.x[:, 0])  # (num_atoms, hidden_dim)
        mu = q.new_zeros(len(q), 3, q.shape[1])
        parts = filters.chunk(len(self.messages), dim=-1)  # (num_pairs, 3 * hidden_dim) each
        for message, mixing, weight in zip(self.messages, self.mixings, parts, strict=True):
            q, mu = message(q, mu, weight, direction, batch.pair_index)
            q, mu = mixing(q, mu)
        return q

    def readout(self, h: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the representation of each molecule, (num_graphs, hidden_dim): the atoms' sum."""
        return segment_sum(h, batch.batch, batch.num_graphs)
