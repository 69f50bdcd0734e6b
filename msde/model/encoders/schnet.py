"""SchNet, the 3D encoder: continuous-filter convolutions over distances (Schuett et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import SchNetConfig
from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.layers import (
    Linear,
    Sequential,
    ShiftedSoftplus,
    at_least_float32,
    cosine_envelope,
    gaussians,
    start_xavier,
)
from msde.ops import Interpolation, Pairs, filter_conv, interpolated_conv, segment_mean


class Filters:
    """The filters of all pairs of a batch: filter_network(Gaussians of d) * envelope(d).

    A filter is a function of one number, so for many pairs the network is evaluated on a grid of
    distances and interpolated. With KNOTS_PER_GAUSSIAN = 20 the error is that of float32 itself.
    Its derivative in d is less exact: where positions need gradients every pair is evaluated.
    """

    KNOTS_PER_GAUSSIAN = 20

    def __init__(self, distance: Tensor, centres: Tensor) -> None:
        """Prepare for distances (num_pairs,) and Gaussians at `centres`, from 0 to the cutoff."""
        cutoff, spacing = centres[-1], centres[1] - centres[0]
        within = distance <= cutoff  # the envelope's cosine would grow again beyond
        step = spacing / self.KNOTS_PER_GAUSSIAN
        num_knots = self.KNOTS_PER_GAUSSIAN * (len(centres) - 1) + 3  # one before 0, one beyond
        if distance.requires_grad or len(distance) < num_knots:
            at, self._interpolate = distance, None
        else:
            at = (torch.arange(num_knots, device=distance.device) - 1) * step  # (num_knots,)
            self._interpolate = Interpolation(distance / step, within, num_knots)
        self._gaussians = gaussians(at, centres)
        envelope = cosine_envelope(at, cutoff)
        self._envelope = envelope if self._interpolate else envelope * within

    def __call__(self, network: nn.Module) -> Tensor:
        """Return the filters that a network makes, (num_pairs, num_filters)."""
        filters = self._at_grid(network)
        return self._interpolate(filters) if self._interpolate else filters

    def _at_grid(self, network: nn.Module) -> Tensor:
        return network(self._gaussians) * self._envelope.unsqueeze(-1)

    def convolve(self, network: nn.Module, x: Tensor, pairs: Pairs) -> Tensor:
        """Return the sum over each atom's pairs of filter times x, (num_atoms, num_filters)."""
        filters = self._at_grid(network)
        if self._interpolate:
            return interpolated_conv(x, filters, self._interpolate, pairs)
        return filter_conv(x, filters.to(x.dtype), pairs.index)


class Interaction(nn.Module):
    """The update of h by its neighbours, seen through filters of their distances."""

    def __init__(self, hidden_dim: int, config: SchNetConfig) -> None:
        """Make the filter network and the atom-wise layers around the convolution."""
        super().__init__()
        filters = config.num_filters
        self.filter = Sequential(
            Linear(config.num_gaussians, filters), ShiftedSoftplus(), Linear(filters, filters)
        )
        self.to_filters = Linear(hidden_dim, filters, bias=False)
        self.from_filters = Linear(filters, hidden_dim)
        self.out = Linear(hidden_dim, hidden_dim)
        for layer in (self.filter[0], self.filter[2], self.to_filters, self.from_filters, self.out):
            nn.init.xavier_uniform_(layer.weight)
        # As published, the second filter layer keeps the bias it was born with.
        for layer in (self.filter[0], self.from_filters, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, filters: Filters, pairs: Pairs) -> Tensor:
        """Return the new h, (num_atoms, hidden_dim)."""
        x = at_least_float32(self.to_filters(h))  # (num_atoms, num_filters)
        x = filters.convolve(self.filter, x, pairs)
        return self.out(self.from_filters(x, "shifted_softplus"), plus=h)


class SchNet(nn.Module):
    """The 3D encoder; sees atomic numbers and distances only, so it is E(3)-invariant."""

    def __init__(self, hidden_dim: int, config: SchNetConfig) -> None:
        """Build `config.num_interactions` interactions of width `hidden_dim`."""
        super().__init__()
        self.embedding = nn.Embedding(ATOM_SIZES[0], hidden_dim)
        centres = torch.linspace(0, config.cutoff, config.num_gaussians)
        self.register_buffer("centres", centres, persistent=False)
        self.interactions = nn.ModuleList(
            Interaction(hidden_dim, config) for _ in range(config.num_interactions)
        )
        self.out = Sequential(
            Linear(hidden_dim, hidden_dim),
            ShiftedSoftplus(),
            Linear(hidden_dim, hidden_dim),
        )
        start_xavier(self.out[0], self.out[2])

    def forward(self, batch: MoleculeBatch, pos: Tensor | None = None) -> Tensor:
        """Return the representation of each atom, (num_atoms, hidden_dim).

        Args:
            pos: (num_atoms, 3) positions in A, by default the batch's.
        """
        # All pairs of a molecule, weighted zero beyond the cutoff: no neighbour search, and exact.
        distance = geometry.distances(batch.pos if pos is None else pos, batch.pair_index)
        filters, pairs = Filters(distance, self.centres), batch.pairs
        h = self.embedding(batch.x[:, 0])  # the code of the atomic number, "other" included
        for interaction in self.interactions:
            h = interaction(h, filters, pairs)
        return self.out(h)

    def readout(self, h: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the representation of each molecule, (num_graphs, hidden_dim): the atoms' mean."""
        return segment_mean(h, batch.batch, batch.atoms_per_graph)
