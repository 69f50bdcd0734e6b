"""PaiNN, a 3D encoder with equivariant vectors beside invariant scalars (Schuett et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import PaiNNConfig
from msde.data.batch import MoleculeBatch
from msde.model.encoders.base import Encoder
from msde.model.layers import MLP, Linear, cosine_envelope, gaussians, init_xavier
from msde.ops import segment_sum

EPSILON = 1e-8  # under the root of a vector's norm, as published


class Message(nn.Module):
    """The messages of an atom's neighbours to its scalars and vectors."""

    def __init__(self, hidden_dim: int) -> None:
        """Make the network of the neighbours' scalars, whose output the filters multiply."""
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
            pair_index: (2, num_pairs).
        """
        x = self.context(q)  # (num_atoms, 3 * hidden_dim)
        mu_before = mu
        first, second = pair_index
        for target, source, sign in ((first, second, 1), (second, first, -1)):
            filtered = filters.to(x.dtype) * x.index_select(0, source)
            dq, dmu_r, dmu_mu = filtered.chunk(3, dim=-1)  # (num_pairs, hidden_dim) each
            unit = (sign * direction).to(x.dtype).unsqueeze(-1)  # (num_pairs, 3, 1)
            dmu = dmu_r.unsqueeze(1) * unit  # (num_pairs, 3, hidden_dim)
            dmu = dmu + dmu_mu.unsqueeze(1) * mu_before.index_select(0, source)
            q = q + segment_sum(dq, target, len(q))
            mu = mu + segment_sum(dmu, target, len(mu))
        return q, mu


class Mixing(nn.Module):
    """The update of an atom's scalars and vectors by each other."""

    def __init__(self, hidden_dim: int) -> None:
        """Make the linear maps of the vectors and the network of the scalars."""
        super().__init__()
        self.vectors = Linear(hidden_dim, 2 * hidden_dim, bias=False)
        init_xavier(self.vectors)
        self.context = MLP([2 * hidden_dim, hidden_dim, 3 * hidden_dim], "silu")

    def forward(self, q: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new q, (num_atoms, hidden_dim), and mu, (num_atoms, 3, hidden_dim)."""
        v, w = self.vectors(mu).chunk(2, dim=-1)  # (num_atoms, 3, hidden_dim) each
        norm = torch.sqrt(v.square().sum(1) + EPSILON)  # (num_atoms, hidden_dim)
        context = self.context(torch.cat([q, norm], dim=-1))  # (num_atoms, 3 * hidden_dim)
        a, b, c = context.chunk(3, dim=-1)  # (num_atoms, hidden_dim) each
        return q + a + c * (v * w).sum(1), mu + b.unsqueeze(1) * w


class PaiNN(Encoder):
    """A 3D encoder whose scalars are E(3)-invariant and whose vectors are equivariant."""

    def __init__(self, hidden_dim: int, config: PaiNNConfig) -> None:
        """Build `config.num_interactions` interactions of width `hidden_dim`."""
        super().__init__()
        self.output_dim = hidden_dim
        # Published: hydrogen, with code 0, is the padding row of the embedding, which stays zero.
        padding = None if config.train_hydrogen else 0
        self.embedding = nn.Embedding(ATOM_SIZES[0], hidden_dim, padding_idx=padding)
        centres = torch.linspace(0, config.cutoff, config.num_gaussians)
        self.register_buffer("centres", centres, persistent=False)
        numbers = range(config.num_interactions)
        self.filter = Linear(config.num_gaussians, len(numbers) * 3 * hidden_dim)
        init_xavier(self.filter)
        self.messages = nn.ModuleList(Message(hidden_dim) for _ in numbers)
        self.mixings = nn.ModuleList(Mixing(hidden_dim) for _ in numbers)

    def forward(self, batch: MoleculeBatch, pos: Tensor | None = None) -> Tensor:
        """Return the representation of each atom, (num_atoms, hidden_dim).

        Args:
            pos: (num_atoms, 3) positions in A, by default the batch's.
        """
        pos = batch.pos if pos is None else pos
        first, second = batch.pair_index
        # All pairs of a molecule, with zero weight beyond the cutoff: exact, without a search.
        difference = pos.index_select(0, first) - pos.index_select(0, second)  # (num_pairs, 3)
        distance = difference.norm(dim=-1)  # (num_pairs,)
        direction = difference / distance.clamp(min=EPSILON).unsqueeze(-1)  # (num_pairs, 3)
        cutoff = self.centres[-1]  # () A
        envelope = cosine_envelope(distance, cutoff) * (distance < cutoff)  # (num_pairs,)
        # The filters of all interactions, (num_pairs, num_interactions * 3 * hidden_dim).
        filters = self.filter(gaussians(distance, self.centres)) * envelope.unsqueeze(-1)
        q = self.embedding(batch.x[:, 0])  # (num_atoms, hidden_dim)
        mu = q.new_zeros(len(q), 3, q.shape[1])  # (num_atoms, 3, hidden_dim)
        parts = filters.chunk(len(self.messages), dim=-1)  # (num_pairs, 3 * hidden_dim) each
        for message, mixing, part in zip(self.messages, self.mixings, parts, strict=True):
            q, mu = message(q, mu, part, direction, batch.pair_index)
            q, mu = mixing(q, mu)
        return q

    def readout(self, h: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the representation of each molecule, (num_graphs, output_dim): the atoms' sum."""
        return segment_sum(h, batch.batch, batch.num_graphs)
