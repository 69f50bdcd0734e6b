"""SchNet, a 3D encoder: continuous-filter convolutions over distances (Schuett et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import SchNetConfig
from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.encoders.base import Encoder
from msde.model.layers import (
    Linear,
    at_least_float32,
    cosine_envelope,
    gaussians,
    init_xavier,
    numbered,
)
from msde.ops import Interpolation, Pairs, filter_conv, interpolated_conv


class Filters:
    """The filters of all pairs of a batch: filter_network(Gaussians of d) * envelope(d).

    A filter depends on the distance alone. For many pairs the network is therefore evaluated on a
    grid of distances and interpolated, with the error of float32. The derivative in d would be less
    exact, so every pair is evaluated where positions need gradients.
    """

    KNOTS_PER_GAUSSIAN = 20

    def __init__(self, distance: Tensor, centres: Tensor) -> None:
        """Choose the distances that the network is evaluated at.

        Args:
            distance: (num_pairs,) A.
            centres: (num_gaussians,) from zero to the cutoff, A.
        """
        cutoff, spacing = centres[-1], centres[1] - centres[0]  # () A
        within = distance <= cutoff  # (num_pairs,) the envelope's cosine grows again beyond it
        step = spacing / self.KNOTS_PER_GAUSSIAN  # () A
        # One knot lies below zero and one beyond the cutoff.
        num_knots = self.KNOTS_PER_GAUSSIAN * (len(centres) - 1) + 3
        if distance.requires_grad or len(distance) < num_knots:
            at, self._interpolate = distance, None
        else:
            at = (torch.arange(num_knots, device=distance.device) - 1) * step  # (num_knots,)
            self._interpolate = Interpolation(distance / step, within, num_knots)
        self._gaussians = gaussians(at, centres)  # (num_pairs or num_knots, num_gaussians)
        envelope = cosine_envelope(at, cutoff)  # (num_pairs or num_knots,)
        self._envelope = envelope if self._interpolate else envelope * within

    def __call__(self, network: nn.Module) -> Tensor:
        """Return the filters of a network, (num_pairs, num_filters)."""
        filters = self._evaluate(network)
        return self._interpolate(filters) if self._interpolate else filters

    def _evaluate(self, network: nn.Module) -> Tensor:
        """Return the filters at the chosen distances, (num_pairs or num_knots, num_filters)."""
        return network(self._gaussians) * self._envelope.unsqueeze(-1)

    def convolve(self, network: nn.Module, x: Tensor, pairs: Pairs) -> Tensor:
        """Return the sum over each atom's pairs of filter times x, (num_atoms, num_filters).

        Args:
            network: the filter network.
            x: (num_atoms, num_filters).
        """
        filters = self._evaluate(network)
        if self._interpolate:
            return interpolated_conv(x, filters, self._interpolate, pairs)
        return filter_conv(x, filters.to(x.dtype), pairs.index)


class Interaction(nn.Module):
    """A continuous-filter convolution over an atom's neighbours, between atom-wise layers."""

    def __init__(self, hidden_dim: int, config: SchNetConfig) -> None:
        """Make the filter network and the atom-wise layers around the convolution."""
        super().__init__()
        filters = config.num_filters
        self.filter = numbered(
            {
                0: Linear(config.num_gaussians, filters, activation="shifted_softplus"),
                2: Linear(filters, filters),
            }
        )
        self.to_filters = Linear(hidden_dim, filters, bias=False)
        self.from_filters = Linear(filters, hidden_dim, activation="shifted_softplus")
        self.out = Linear(hidden_dim, hidden_dim)
        init_xavier(self.filter[0])
        nn.init.xavier_uniform_(self.filter[1].weight)  # published: its bias keeps torch's default
        init_xavier(self.to_filters, self.from_filters, self.out)

    def forward(self, h: Tensor, filters: Filters, pairs: Pairs) -> Tensor:
        """Return the new h, (num_atoms, hidden_dim)."""
        x = at_least_float32(self.to_filters(h))  # (num_atoms, num_filters)
        x = filters.convolve(self.filter, x, pairs)  # (num_atoms, num_filters)
        return self.out(self.from_filters(x), plus=h)


class SchNet(Encoder):
    """A 3D encoder: a function of atomic numbers and distances, hence E(3)-invariant."""

    def __init__(self, hidden_dim: int, config: SchNetConfig) -> None:
        """Build `config.num_interactions` interactions of width `hidden_dim`."""
        super().__init__()
        self.output_dim = hidden_dim
        self.embedding = nn.Embedding(ATOM_SIZES[0], hidden_dim)
        centres = torch.linspace(0, config.cutoff, config.num_gaussians)
        self.register_buffer("centres", centres, persistent=False)
        self.interactions = nn.ModuleList(
            Interaction(hidden_dim, config) for _ in range(config.num_interactions)
        )
        self.out = numbered(
            {
                0: Linear(hidden_dim, hidden_dim, activation="shifted_softplus"),
                2: Linear(hidden_dim, hidden_dim),
            }
        )
        init_xavier(*self.out)

    def forward(self, batch: MoleculeBatch, pos: Tensor | None = None) -> Tensor:
        """Return the representation of each atom, (num_atoms, hidden_dim).

        Args:
            pos: (num_atoms, 3) positions in A, by default the batch's.
        """
        # All pairs of a molecule, with zero weight beyond the cutoff: exact, without a search.
        distance = geometry.distances(batch.pos if pos is None else pos, batch.pair_index)
        filters, pairs = Filters(distance, self.centres), batch.pairs
        h = self.embedding(batch.x[:, 0])  # (num_atoms, hidden_dim) of the atomic number's code
        for interaction in self.interactions:
            h = interaction(h, filters, pairs)
        return self.out(h)
