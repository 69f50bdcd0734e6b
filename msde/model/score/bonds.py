"""3D -> 2D, variant `one_hot`: the network that finds bonds, given atoms and a geometry.

It differs from the published network of `topology.py`, whose adjacency is one number a pair, in
which a mean of single and aromatic looks like a double bond. Here each pair of atoms nearer than
CUTOFF has a one-hot channel for each of CLASSES. The channels diffuse; the network returns logits,
and the cross-entropy is its loss at every t (CDCD, Dieleman et al. 2022, arXiv:2211.15089). So the
softmax is the mean of x_0 given x_t, and the score follows from it by Tweedie's formula.

The log-likelihood of x_t under each class, alpha x_t / std^2 up to a constant, is added to the
logits by Bayes' rule, and is the form in which the network sees x_t. At t = 1 it almost vanishes:
one evaluation there, at x_t = 0, is the classifier. Charges are not known. Atom types are, or, in
networks with `hidden_types`, may be hidden: then the network finds them from positions alone. All
geometry enters by distances and scalar products, so rotations and mirror images change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import TopologyScoreConfig
from msde.data.batch import MoleculeBatch
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
from msde.model.sde import make_sde, per_row
from msde.ops import Edges, edge_attention, edge_mlp, segment_sum, sort_edges

CLASSES = ("none", "single", "double", "triple", "aromatic")
CUTOFF = 3.0  # A; the longest bond, I-I, has 2.7
FIRST, NUM_GAUSSIANS = 0.8, 32  # A, of the Gaussians of distances, which end at the cutoff
NUM_VECTORS = 16  # of each atom, whose scalar products with bonds are functions of angles
EPSILON = 1e-8  # A^2, added below roots, which are not differentiable at zero
LIKELIHOOD_SCALE = 4.0  # of log-likelihoods as an input, which are squashed by tanh


HIDDEN = ATOM_SIZES[0] - 1  # the code of a hidden atom type: that of no element


def hide_types(batch: MoleculeBatch, hidden: Tensor) -> MoleculeBatch:
    """Return the batch without the atom types of some molecules.

    Args:
        hidden: (num_graphs,) bool.
    """
    is_hidden = hidden[batch.batch]  # (num_atoms,)
    codes = batch.x[:, :1].masked_fill(is_hidden.unsqueeze(-1), HIDDEN)
    x = torch.cat([codes, batch.x[:, 1:]], dim=1)
    return replace(batch, x=x, z=batch.z.masked_fill(is_hidden, 0))


@dataclass(frozen=True)
class NearPairs:
    """The pairs of atoms nearer than CUTOFF, and both directed edges of each."""

    pair: Tensor  # (num_near,) their numbers in `batch.pair_index`
    edges: Edges
    pair_of_edge: Tensor  # (num_edges,) which of the near pairs
    edges_of_pair: Tensor  # (num_near, 2)

    @classmethod
    def of(cls, batch: MoleculeBatch) -> NearPairs:
        """Find the near pairs of a batch."""
        i, j = batch.pair_index
        distance = (batch.pos[i] - batch.pos[j]).square().sum(-1).sqrt()
        pair = (distance < CUTOFF).nonzero().squeeze(-1)
        index = batch.pair_index[:, pair]
        edges, order = sort_edges(torch.cat([index, index.flip(0)], 1), batch.ptr, batch.num_atoms)
        # Padding comes last, so its edges do, too.
        edges = Edges(edges.index, edges.row_ptr, edges.ptr, batch.num_valid_atoms)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return cls(pair, edges, order % max(1, len(pair)), place.view(2, -1).t())


class BondBlock(nn.Module):
    """Edges learn from their atoms and from angles, then atoms from the edges into them."""

    def __init__(self, config: TopologyScoreConfig) -> None:
        """Build one block of width `config.node_dim`."""
        super().__init__()
        dim = config.node_dim
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(dim)
        self.norm_edges = nn.LayerNorm(dim)
        self.nodes = SplitLinear(2 * dim, config.attention_dim)
        hidden = nn.Linear(dim + 3 * NUM_VECTORS, config.attention_dim, bias=False)
        output = nn.Linear(config.attention_dim, dim + NUM_VECTORS)
        # One op uses all of them, so this module holds them, not two layers of its own.
        self.edge_weight = hidden.weight
        self.output_weight, self.output_bias = output.weight, output.bias
        self.query, self.key, self.value = (Linear(dim, dim) for _ in range(3))
        self.output = Linear(dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim + NUM_VECTORS)
        self.feed_forward = MLP([dim + NUM_VECTORS, 2 * dim, dim], "silu")

    def forward(
        self, n: Tensor, e: Tensor, vectors: Tensor, direction: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return updated n, e and vectors.

        Args:
            n: (num_atoms, node_dim).
            e: (num_edges, node_dim).
            vectors: (num_atoms, NUM_VECTORS, 3).
            direction: (num_edges, 3) unit vectors from source to target.
        """
        source, target = edges.index
        at_source, at_target = vectors.index_select(0, source), vectors.index_select(0, target)
        angles = torch.cat(
            [
                (at_source * direction.unsqueeze(1)).sum(-1),
                (at_target * direction.unsqueeze(1)).sum(-1),
                (at_source * at_target).sum(-1),
            ],
            dim=-1,
        )  # (num_edges, 3 * NUM_VECTORS)
        m = self.norm(n)
        a, b = self.nodes(m, m)
        known = torch.cat([self.norm_edges(e), angles], dim=-1)
        made = edge_mlp(
            a, b, self.output_weight, self.output_bias, edges, "silu", known, self.edge_weight
        )  # (num_edges, node_dim + NUM_VECTORS)
        e = e + made[:, : e.shape[1]]
        weighted = made[:, e.shape[1] :].unsqueeze(-1) * direction.unsqueeze(1)
        summed = segment_sum(weighted.flatten(1), target, len(n)).view_as(vectors)
        size = summed.square().sum(-1)  # (num_atoms, NUM_VECTORS)
        vectors = summed * torch.rsqrt(1 + size).unsqueeze(-1)  # shorter than one
        q, k, v = (at_least_float32(part(m)) for part in (self.query, self.key, self.value))
        attended = edge_attention(q, k, v, at_least_float32(e), None, edges, self.num_heads)
        n = n + self.output(attended)
        inputs = torch.cat([n, torch.log1p(size)], dim=-1)
        return n + self.feed_forward(self.norm_feed_forward(inputs)), e, vectors


class BondScore(nn.Module):
    """The network of bonds given the geometry, and the SDE of their one-hot channels."""

    bond_channels = len(CLASSES)
    type_channels = 0  # atom types do not diffuse

    def __init__(self, input_dim: int, config: TopologyScoreConfig) -> None:
        """Build the network for 3D representations of width `input_dim`."""
        super().__init__()
        dim = config.node_dim
        self.sde = make_sde(config.sde)
        self.position_noise = config.position_noise  # A
        self.hidden_types = config.hidden_types
        self.atoms = CategoricalEmbedding([ATOM_SIZES[0], 2], dim)
        self.geometry = MLP([input_dim, dim], "silu")
        self.time = TimeEmbedding(config.time_dim, dim)
        self.pairs = Linear(NUM_GAUSSIANS + len(CLASSES), dim)
        self.blocks = nn.ModuleList(BondBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.out = MLP([dim, dim, len(CLASSES)], "silu")
        self.types: nn.Sequential | None = None
        if config.hidden_types:
            self.types = nn.Sequential(nn.LayerNorm(dim), MLP([dim, dim, ATOM_SIZES[0]], "silu"))

    def forward(
        self,
        bonds_t: Tensor,
        t: Tensor,
        h_3d: Tensor,
        batch: MoleculeBatch,
        near: NearPairs | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of each class given bonds_t, (num_near, 5), and those of atom types.

        The latter are (num_atoms, 119), or None of a network that finds no types.

        Args:
            bonds_t: (num_near, 5) noised one-hot channels of the near pairs.
            t: (num_graphs,) times in (0, 1].
            h_3d: (num_atoms, input_dim) representations of the geometry.
            near: of the batch, where it is known.
        """
        near = NearPairs.of(batch) if near is None else near
        source, target = near.edges.index
        likelihood = self.log_likelihood(bonds_t, t, near, batch)
        difference = batch.pos.index_select(0, target) - batch.pos.index_select(0, source)
        distance = (difference.square().sum(-1) + EPSILON).sqrt()
        direction = difference / distance.unsqueeze(-1)
        centres = torch.linspace(FIRST, CUTOFF, NUM_GAUSSIANS, device=distance.device)
        squashed = torch.tanh(likelihood / LIKELIHOOD_SCALE).index_select(0, near.pair_of_edge)
        known = torch.cat([gaussians(distance, centres.to(distance)), squashed], dim=-1)
        e = self.pairs(known)  # (num_edges, node_dim)
        is_hydrogen = (batch.z == 1).to(batch.pos.dtype).unsqueeze(-1)
        has_hydrogens = segment_sum(is_hydrogen, batch.batch, batch.num_graphs)[batch.batch] > 0
        codes = torch.cat([batch.x[:, :1], has_hydrogens.long()], dim=1)
        n = self.atoms(codes) + self.geometry(h_3d) + index_rows(self.time(t), batch.batch)
        vectors = n.new_zeros(len(n), NUM_VECTORS, 3)
        for block in self.blocks:
            n, e, vectors = block(n, e, vectors, direction, near.edges)
        both = e.index_select(0, near.edges_of_pair.flatten()).view(-1, 2, e.shape[1]).sum(1)
        of_types = None if self.types is None else self.types(n)
        return self.out(self.norm(both)) + likelihood, of_types

    def log_likelihood(
        self, bonds_t: Tensor, t: Tensor, near: NearPairs, batch: MoleculeBatch
    ) -> Tensor:
        """Return log p(bonds_t | class) up to a constant of each pair, (num_near, 5)."""
        alpha, std = self.sde.marginal_prob(torch.ones_like(t), t)
        ratio = (alpha / std.square())[batch.pair_batch[near.pair]]
        return bonds_t * per_row(ratio, bonds_t)

    def score(
        self, logits: Tensor, bonds_t: Tensor, t: Tensor, near: NearPairs, batch: MoleculeBatch
    ) -> Tensor:
        """Return the score (alpha softmax(logits) - bonds_t) / std^2, like bonds_t."""
        alpha, std = self.sde.marginal_prob(torch.ones_like(t), t)
        graph = batch.pair_batch[near.pair]
        mean = logits.softmax(-1) * per_row(alpha[graph], logits)
        return (mean - bonds_t) / per_row(std[graph].square(), logits)
