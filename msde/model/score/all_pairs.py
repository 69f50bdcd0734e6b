"""2D -> 3D, variant `all_pairs`: the score network to generate conformers with.

It differs from the published networks of `conformer.py`: edges join all atoms of a molecule and
know the topology between them (hops, bond, cis or trans); the geometry is made again in each block;
at a stereocentre the network sees the signed volume of the neighbours times the sign of the label.
So mirrored positions with mirrored labels give the mirrored result exactly, and without labels both
mirror images are equally likely. Inputs and outputs are preconditioned (Karras et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msde.config import ConformerScoreConfig
from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.layers import (
    MLP,
    CategoricalEmbedding,
    Linear,
    SplitLinear,
    TimeEmbedding,
    at_least_float32,
    gaussians,
    index_rows,
)
from msde.model.relations import RELATION_SIZES, Relations, relations
from msde.model.rotations import RotationMean
from msde.model.sde import make_sde, per_row
from msde.ops import all_pairs, all_pairs_fits, edge_attention, edge_mlp, segment_sum

NUM_GAUSSIANS = 32
MAX_LOG_DISTANCE = 2.7  # log(1 + d), d in A, of the last Gaussian
RELATION_DIM = 32
EPSILON = 1e-8  # A^2, added below roots, which are not differentiable at zero
VOLUMES = (2.6, 10.0)  # A^3, scales of signed volumes; a carbon with three bonds of 1.5 A has 2.6


@dataclass(frozen=True)
class Condition:
    """What the network knows of the topology, the same at every step of a sampler."""

    nodes: Tensor  # (num_atoms, hidden_dim)
    relations: Relations
    features: Tensor  # (num_edges, RELATION_DIM) of the relations


@dataclass(frozen=True)
class Static:
    """What all blocks of one evaluation share."""

    related: Relations
    # (num_edges, RELATION_DIM); where the op `all_pairs` is used, of the edges from the atom that
    # comes first to the other one alone, (num_pairs, RELATION_DIM).
    features: Tensor
    is_of_pairs: bool


class Stereocentres(nn.Module):
    """Features of, and forces on, the stereocentres and their neighbours.

    The signed volume V of the neighbours is a pseudo-scalar and its gradients are pseudo-vectors;
    times the sign s of the label they are a scalar and vectors.
    """

    def __init__(self, hidden_dim: int) -> None:
        """Map volumes to `hidden_dim`-vectors, and these to two coefficients."""
        super().__init__()
        self.features = Linear(len(VOLUMES), hidden_dim, bias=False)
        self.coefficients = MLP([hidden_dim, hidden_dim, 2], "silu")
        nn.init.zeros_(self.coefficients.layers[-1].weight)

    def forward(self, n: Tensor, pos: Tensor, related: Relations) -> tuple[Tensor, Tensor]:
        """Return the updated features, (num_atoms, hidden_dim), and moves, (num_atoms, 3), A.

        Args:
            n: (num_atoms, hidden_dim).
            pos: (num_atoms, 3).
        """
        volume, gradients = signed_volumes(pos, related)
        sv = related.sign.to(pos.dtype) * volume
        n = n + self.features(torch.stack([torch.tanh(sv / scale) for scale in VOLUMES], -1))
        of_neighbours, of_centre = self.coefficients(n).unsqueeze(-1).unbind(1)  # (num_atoms, 1)
        gradients = gradients * (related.sign.view(-1, 1, 1))
        size = (gradients.square().sum(-1, keepdim=True) + EPSILON).sqrt()
        gradients = gradients / (1 + size)  # (num_atoms, 4, 3)
        moves = gradients * of_neighbours.unsqueeze(1)
        moves = segment_sum(moves.flatten(0, 1), related.neighbours.flatten(), len(pos))
        return n, moves - of_centre * gradients.sum(1)


def signed_volumes(pos: Tensor, related: Relations) -> tuple[Tensor, Tensor]:
    """Return the signed volume of each atom's neighbours, and its gradients at them.

    Of three neighbours it is det(r1, r2, r3) with r from the centre; of four a quarter of
    det(r1 - r4, r2 - r4, r3 - r4), which is of about the same size. Positive is counterclockwise.

    Returns:
        (num_atoms,) in A^3 and (num_atoms, 4, 3) in A^2; without meaning at other atoms.
    """
    r = pos[related.neighbours] - pos.unsqueeze(1)  # (num_atoms, 4, 3)
    four = related.has_four.view(-1, 1, 1)
    origin = torch.where(four, r[:, 3:], torch.zeros_like(r[:, 3:]))  # (num_atoms, 1, 3)
    a, b, c = (r[:, :3] - origin).unbind(1)
    factor = torch.where(related.has_four, 0.25, 1.0).to(pos.dtype).unsqueeze(-1)
    at_a, at_b, at_c = (
        torch.linalg.cross(x, y) * factor for x, y in ((b, c), (c, a), (a, b))
    )  # (num_atoms, 3)
    at_last = -(at_a + at_b + at_c) * related.has_four.unsqueeze(-1)
    return (a * at_a).sum(-1), torch.stack([at_a, at_b, at_c, at_last], 1)


class PairFeatures(nn.Module):
    """Features of all directed edges, and what is made of them.

    They come from both atoms, their relation and their distance. One of them moves the target along
    the difference of the atoms; the others enter the attention of the atoms.
    """

    def __init__(self, config: ConformerScoreConfig, output_dim: int) -> None:
        """Make an MLP with features of width `output_dim` beside the moves; 0: no attention."""
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.nodes = SplitLinear(2 * config.hidden_dim, config.basis_dim)
        hidden, output = (
            nn.Linear(RELATION_DIM + NUM_GAUSSIANS, config.basis_dim, bias=False),
            nn.Linear(config.basis_dim, output_dim + 1),
        )
        # One op uses all of them, so this module holds them, not two layers of its own.
        self.edge_weight = hidden.weight
        self.output_weight, self.output_bias = output.weight, output.bias
        with torch.no_grad():
            self.output_weight[-1] *= 1e-2  # the column of moves: a network starts at rest
            self.output_bias[-1] = 0

    def forward(
        self,
        n: Tensor,
        pos: Tensor,
        moves: Tensor,
        static: Static,
        queries: Callable[[], tuple[Tensor, ...]] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `moves` and those along edges, and the result of the attention, if it is made.

        Args:
            n: (num_atoms, hidden_dim).
            pos: (num_atoms, 3) A.
            moves: (num_atoms, 3) A, to which these are added.
            queries: returns queries, keys and values, (num_atoms, output_dim) each.
        """
        n = self.norm(n)
        a, b = self.nodes(n, n)
        weights = (self.output_weight, self.output_bias)
        edges = static.related.edges
        if static.is_of_pairs:
            along, attended = all_pairs(
                pos, a, b, static.features, self.edge_weight, *weights,
                None if queries is None else queries(), self.num_heads, log_distances(pos),
                edges.ptr, EPSILON,
            )  # fmt: skip
            return moves + along, attended
        difference, near = differences(pos, edges.index)
        attr = torch.cat([static.features, near], dim=-1)
        e = edge_mlp(a, b, *weights, edges, "silu", attr, self.edge_weight)
        moves = moves + segment_sum(difference * e[:, -1:], edges.index[1], len(pos))
        if queries is None:
            return moves, None
        e = e[:, :-1].contiguous()
        q, k, v = queries()
        return moves, edge_attention(q, k, v, at_least_float32(e), None, edges, self.num_heads)


class Moves(nn.Module):
    """Moves of all atoms along their differences and at stereocentres."""

    def __init__(self, config: ConformerScoreConfig, output_dim: int) -> None:
        """Make edge features of width `output_dim`, which may be 0."""
        super().__init__()
        self.stereocentres = Stereocentres(config.hidden_dim)
        self.pairs = PairFeatures(config, output_dim)

    def forward(self, n: Tensor, pos: Tensor, static: Static) -> Tensor:
        """Return moves, (num_atoms, 3), of n, (num_atoms, hidden_dim), and pos in A."""
        n, moves = self.stereocentres(n, pos, static.related)
        return self.pairs(n, pos, moves, static)[0]


def log_distances(pos: Tensor) -> Tensor:
    """Return the centres of the Gaussians, (NUM_GAUSSIANS,), in log(1 + distance / A)."""
    return torch.linspace(0, MAX_LOG_DISTANCE, NUM_GAUSSIANS, device=pos.device)


def differences(pos: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return target minus source over 1 + distance, (num_edges, 3), and Gaussians of the distance.

    The Gaussians, (num_edges, NUM_GAUSSIANS), are evenly spaced in log(1 + distance / A).

    Args:
        index: (2, num_edges) sources and targets.
    """
    source, target = index
    difference = pos.index_select(0, target) - pos.index_select(0, source)
    distance = (difference.square().sum(-1) + EPSILON).sqrt()
    near = gaussians(torch.log1p(distance), log_distances(pos))
    return difference / (1 + distance).unsqueeze(-1), near


class PairBlock(nn.Module):
    """Atoms move, then attend to all others with the features of the edges between them."""

    def __init__(self, config: ConformerScoreConfig) -> None:
        """Build one block of width `config.hidden_dim`."""
        super().__init__()
        dim = config.hidden_dim
        self.moves = Moves(config, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.query, self.key, self.value = (Linear(dim, dim) for _ in range(3))
        self.output = Linear(dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = MLP([dim, 2 * dim, dim], "silu")

    def forward(self, n: Tensor, pos: Tensor, static: Static) -> tuple[Tensor, Tensor]:
        """Return updated n, (num_atoms, hidden_dim), and moves, (num_atoms, 3)."""
        n, moves = self.moves.stereocentres(n, pos, static.related)

        def queries() -> tuple[Tensor, ...]:
            m = self.norm_attention(n)
            return tuple(at_least_float32(part(m)) for part in (self.query, self.key, self.value))

        moves, attended = self.moves.pairs(n, pos, moves, static, queries)
        n = n + self.output(attended)
        return n + self.feed_forward(self.norm_feed_forward(n)), moves


class AllPairsScore(nn.Module):
    """The score network of positions given the topology, and its SDE."""

    def __init__(self, input_dim: int, config: ConformerScoreConfig) -> None:
        """Build the network for 2D representations of width `input_dim`."""
        super().__init__()
        dim = config.hidden_dim
        self.sde = make_sde(config.sde)
        self.spread = config.input_spread or 1.0  # A
        self.node_embedding = MLP([input_dim, dim], "silu")
        self.relation_embedding = CategoricalEmbedding(RELATION_SIZES, RELATION_DIM)
        self.noised_distance = Linear(NUM_GAUSSIANS, RELATION_DIM)
        self.time = TimeEmbedding(config.time_dim, dim)
        self.blocks = nn.ModuleList(PairBlock(config) for _ in range(config.num_blocks))
        self.last = Moves(config, 0)
        self.rotations = RotationMean()

    def to_subspace(self, rows: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return positions or noise, (num_atoms, 3), with a mean of zero over each molecule."""
        return geometry.centre(rows, batch.batch, batch.atoms_per_graph)

    def condition(self, h_2d: Tensor, batch: MoleculeBatch) -> Condition:
        """Return what the network knows of the topology; a sampler computes it once."""
        related = relations(batch)
        return Condition(self.node_embedding(h_2d), related, self.relation_embedding(related.codes))

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha, std and (std / alpha / spread)^2 at times t, (num_graphs,) each."""
        alpha, std = self.sde.marginal_prob(torch.ones_like(t), t)
        return alpha, std, (std / (alpha * self.spread)).square()

    @torch.no_grad()
    def target(self, pos_t: Tensor, t: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the noise to predict, (num_atoms, 3): its mean over rotations of the molecule.

        Args:
            pos_t: (num_atoms, 3) the positions of the batch after `noise` at times t.
        """
        alpha, std, _ = self._levels(t)
        pos = self.rotations.average(pos_t, batch.pos, alpha, std, batch.batch)
        return (pos_t - per_row(alpha[batch.batch], pos) * pos) / per_row(std[batch.batch], pos)

    def weigh(self, loss: Tensor, t: Tensor) -> Tensor:
        """Return the losses of the noise, (num_graphs,), such that all times count alike.

        They are those of the network's own output, whose target has one size at every t.
        """
        return loss * (1 + self._levels(t)[2])

    def forward(
        self,
        pos_t: Tensor,
        t: Tensor,
        h_2d: Tensor,
        batch: MoleculeBatch,
        condition: Condition | None = None,
    ) -> Tensor:
        """Predict the standard-normal noise in the positions, (num_atoms, 3).

        Args:
            pos_t: (num_atoms, 3) noised positions, A.
            t: (num_graphs,) times in (0, 1].
            h_2d: (num_atoms, input_dim) representations of the topology.
            condition: of `h_2d` and the batch, where it is known.
        """
        known = self.condition(h_2d, batch) if condition is None else condition
        alpha, std, level = self._levels(t)

        def rows(value: Tensor) -> Tensor:
            return per_row(value[batch.batch], pos_t)

        related = known.relations
        pos_t = self.to_subspace(pos_t, batch)
        pos = pos_t * rows(torch.rsqrt(1 + level) / alpha)  # as large as the data
        kept = pos_t * rows(1 / (alpha * (1 + level)))  # c_skip x_t
        c_out = rows((level / (1 + level)).sqrt())
        index, features = related.edges.index, known.features
        is_fused = all_pairs_fits(pos, known.nodes, features)
        if is_fused:
            forward = (index[0] < index[1]).nonzero().squeeze(-1)  # (num_pairs,)
            index, features = index[:, forward], features.index_select(0, forward)
        _, near = differences(pos, index)
        static = Static(related, features + self.noised_distance(near), is_fused)
        n = at_least_float32(known.nodes) + index_rows(self.time(t), batch.batch)
        moves = torch.zeros_like(pos)
        for block in self.blocks:
            n, more = block(n, pos, static)
            moves = moves + more
            pos = kept + c_out * moves  # the estimate of x_0 so far
        moves = moves + self.last(n, pos, static)
        pos_0 = self.to_subspace(kept + c_out * moves, batch)
        return (pos_t - rows(alpha) * pos_0) / rows(std)
