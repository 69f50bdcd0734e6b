"""2D -> 3D: the score network of positions given the topology (Liu et al. 2023, section 4.1).

SE(3)-equivariant, and reflection-antisymmetric through the cross product in its edge frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.config import ConformerScoreConfig
from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.layers import (
    MLP,
    Dropout,
    FourierLinear,
    Linear,
    SplitLinear,
    TimeEmbedding,
    at_least_float32,
    index_rows,
    init_xavier,
    numbered,
)
from msde.model.sde import input_scale, make_sde, per_row
from msde.ops import (
    Edges,
    dropout_factors,
    edge_attention,
    edge_mlp,
    edge_norm,
    frame_mean,
    frames,
    linear,
)
from msde.ops.frames import EdgeGeometry

# All atoms of a linear molecule are collinear with its centre: see edge_frames.
COLLINEAR = 1e-4


class EdgeNorm(nn.BatchNorm1d):
    """BatchNorm over the edges of a_source + b_target, computed at the atoms."""

    def forward(self, a: Tensor, b: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return a' and b' whose sums a'_source + b'_target are normalised over the edges.

        Args:
            a, b: (num_atoms, width) each, like the results.
        """
        return edge_norm(a, b, self, edges)


class EdgeOutput(nn.Linear):
    """The linear map of relu(a_source + b_target) for each edge."""

    def forward(self, a: Tensor, b: Tensor, edges: Edges) -> Tensor:
        """Map a and b, (num_atoms, inputs), to edges, (num_edges, outputs)."""
        return edge_mlp(a, b, self.weight, self.bias, edges, "relu")


class TopologyEdges(nn.Module):
    """Edge features of the topology: Linear, BatchNorm, ReLU, Linear of [h_source, h_target]."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        """Map pairs of `input_dim`-vectors to `hidden_dim`-vectors."""
        super().__init__()
        self.input = SplitLinear(2 * input_dim, input_dim)
        self.norm = EdgeNorm(input_dim)
        self.output = EdgeOutput(input_dim, hidden_dim)

    def forward(self, h: Tensor, edges: Edges) -> Tensor:
        """Map atoms' representations, (num_atoms, input_dim), to edges, (num_edges, hidden_dim)."""
        a, b = self.input(h, h)  # (num_atoms, input_dim) each
        a, b = self.norm(a, b, edges)
        return self.output(a, b, edges)


class FrameEdges(nn.Module):
    """Edge features of the end points' coordinates in the edge's frame: SE(3)-invariant."""

    def __init__(self, hidden_dim: int) -> None:
        """Map frame coordinates to `hidden_dim`-vectors."""
        super().__init__()
        self.coordinates = FourierLinear(2, hidden_dim, hidden_dim)
        self.mlp = MLP([2 + 2 * hidden_dim, hidden_dim, hidden_dim], "silu")

    def forward(self, edge_geometry: EdgeGeometry, plus: Tensor) -> Tensor:
        """Return features of the edges, added to `plus`, (num_edges, hidden_dim)."""
        source = self.coordinates(edge_geometry.source)  # (num_edges, hidden_dim)
        target = self.coordinates(edge_geometry.target)  # (num_edges, hidden_dim)
        return self.mlp(torch.cat([edge_geometry.angle, source, target], dim=-1), plus)


class FrameFeatures(nn.Module):
    """Edge features, variant `frame`: the sum of those of topology and of edge frames."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        """Map 2D representations of width `input_dim` and positions to `hidden_dim`-vectors."""
        super().__init__()
        self.topology = TopologyEdges(input_dim, hidden_dim)
        self.frame = FrameEdges(hidden_dim)

    def forward(self, h_2d: Tensor, edge_geometry: EdgeGeometry, edges: Edges) -> Tensor:
        """Return features of the edges, (num_edges, hidden_dim)."""
        return self.frame(edge_geometry, self.topology(h_2d, edges))


class FrameDistanceFeatures(FrameFeatures):
    """Edge features, variant `frame_distance`: those of the topology times a distance feature."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        """Map 2D representations of width `input_dim` and positions to `hidden_dim`-vectors."""
        super().__init__(input_dim, hidden_dim)
        self.distance = FourierLinear(1, hidden_dim, hidden_dim)
        init_xavier(self.distance)

    def forward(self, h_2d: Tensor, edge_geometry: EdgeGeometry, edges: Edges) -> Tensor:
        """Return features of the edges, (num_edges, hidden_dim)."""
        distance = self.distance(edge_geometry.distance.unsqueeze(-1))  # (num_edges, hidden_dim)
        return self.frame(edge_geometry, distance * self.topology(h_2d, edges))


EDGE_FEATURES = {"frame": FrameFeatures, "frame_distance": FrameDistanceFeatures}


class EdgeAttention(nn.Module):
    """Multi-head attention over incoming edges, with edge features (Shi et al. 2021)."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float) -> None:
        """Divide `hidden_dim` among the heads."""
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(hidden_dim, hidden_dim)
        self.key = Linear(hidden_dim, hidden_dim)
        self.value = Linear(hidden_dim, hidden_dim)
        self.edge = Linear(hidden_dim, hidden_dim, bias=False)
        self.root = Linear(hidden_dim, hidden_dim)

    def forward(self, n: Tensor, edge_attr: Tensor, edges: Edges) -> Tensor:
        """Update n, (num_atoms, hidden_dim), given edge_attr, (num_edges, hidden_dim)."""
        e = at_least_float32(self.edge(edge_attr))  # (num_edges, hidden_dim)
        keep = None
        if self.training and self.dropout:
            keep = dropout_factors((len(e), self.num_heads), self.dropout, e)
        # (num_atoms, hidden_dim) each
        q, k, v = (at_least_float32(part(n)) for part in (self.query, self.key, self.value))
        return edge_attention(q, k, v, e, keep, edges, self.num_heads) + self.root(n)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each normalised and added to the input."""

    def __init__(self, config: ConformerScoreConfig) -> None:
        """Build one layer of width `config.hidden_dim`."""
        super().__init__()
        dim = config.hidden_dim
        self.attention = EdgeAttention(dim, config.num_heads, config.dropout)
        self.feed_forward = numbered(
            {
                0: Linear(dim, dim, activation="silu"),
                2: Dropout(config.dropout),
                3: Linear(dim, dim),
            }
        )
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)

    def forward(self, n: Tensor, edge_attr: Tensor, edges: Edges) -> Tensor:
        """Update n, (num_atoms, hidden_dim), given edge_attr, (num_edges, hidden_dim)."""
        n = n + self.norm_attention(self.attention(n, edge_attr, edges))
        return n + self.norm_feed_forward(self.feed_forward(n))


class EquivariantReadout(nn.Module):
    """A vector for each atom: the mean over its incoming edges of b1 e1 + b2 e2 + b3 e3."""

    def __init__(self, hidden_dim: int, basis_dim: int) -> None:
        """Make the MLP of the coefficients b, with `basis_dim` hidden units."""
        super().__init__()
        hidden, output = nn.Linear(2 * hidden_dim, basis_dim), nn.Linear(basis_dim, 3)
        # One op uses all of them, so this module holds them, not two layers of its own.
        self.input_weight, self.input_bias = hidden.weight, hidden.bias
        self.output_weight, self.output_bias = output.weight, output.bias

    def forward(self, n: Tensor, edge_attr: Tensor, frames: Tensor, edges: Edges) -> Tensor:
        """Return a vector for each atom, (num_atoms, 3).

        Args:
            n: (num_atoms, hidden_dim) node features.
            edge_attr: (num_edges, hidden_dim) edge features.
            frames: (num_edges, 3, 3).
        """
        node_weight, edge_weight = self.input_weight.split(n.shape[1], dim=1)
        # The linear map of n_source + n_target is computed at the atoms.
        u = linear(n, node_weight)  # (num_atoms, basis_dim)
        b = edge_mlp(
            u,
            u + self.input_bias,
            self.output_weight,
            self.output_bias,
            edges,
            "silu",
            edge_attr,
            edge_weight,
        )  # (num_edges, 3)
        return frame_mean(b, frames.to(b.dtype), edges)


class ConformerScore(nn.Module):
    """The score network of positions given the topology, and its SDE."""

    def __init__(self, input_dim: int, config: ConformerScoreConfig) -> None:
        """Build the network for 2D representations of width `input_dim`."""
        super().__init__()
        dim = config.hidden_dim
        self.sde = make_sde(config.sde)
        self.centred = config.positions == "centred"
        self.input_spread = config.input_spread
        self.node_embedding = MLP([input_dim, dim], "silu")
        self.edge_features = EDGE_FEATURES[config.edges](input_dim, dim)
        self.time = TimeEmbedding(config.time_dim, 2 * dim) if config.time_dim else None
        self.blocks = nn.ModuleList(
            nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
            for _ in range(config.num_blocks)
        )
        self.readouts = nn.ModuleList(
            EquivariantReadout(dim, config.basis_dim) for _ in range(config.num_blocks)
        )

    def to_subspace(self, rows: Tensor, batch: MoleculeBatch) -> Tensor:
        """Project positions or noise, (num_atoms, 3), to the subspace that they are diffused in.

        With centred positions that is where each molecule's mean is zero, else the whole space.
        """
        if not self.centred:
            return rows
        return geometry.centre(rows, batch.batch, batch.atoms_per_graph)

    def target(self, pos_t: Tensor, t: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the noise to predict, (num_atoms, 3)."""
        return noise

    def weigh(self, loss: Tensor, t: Tensor) -> Tensor:
        """Return the losses of the noise at times t, (num_graphs,), as they are."""
        return loss

    def forward(self, pos_t: Tensor, t: Tensor, h_2d: Tensor, batch: MoleculeBatch) -> Tensor:
        """Predict the standard-normal noise in the positions, (num_atoms, 3).

        Args:
            pos_t: (num_atoms, 3) noised positions, A.
            t: (num_graphs,) times in (0, 1].
            h_2d: (num_atoms, input_dim) representations of the topology.
        """
        edges = batch.extended_edges
        scale = input_scale(self.sde, t, self.input_spread)[batch.batch]  # (num_atoms,)
        pos = self.to_subspace(pos_t, batch) * per_row(scale, pos_t)  # (num_atoms, 3)
        collinear = COLLINEAR if self.centred else 0.0
        edge_geometry = frames.edge_geometry(pos, edges.index, collinear)
        edge_attr = self.edge_features(h_2d, edge_geometry, edges)  # (num_edges, hidden_dim)
        n = self.node_embedding(h_2d)  # (num_atoms, hidden_dim)
        if self.time is not None:
            to_nodes, to_edges = self.time(t).chunk(2, dim=-1)  # (num_graphs, hidden_dim) each
            n = n + index_rows(to_nodes, batch.batch)
            edge_attr = edge_attr + index_rows(to_edges, batch.batch[edges.index[1]])
        noise_pred = torch.zeros_like(pos)  # (num_atoms, 3)
        for layers, readout in zip(self.blocks, self.readouts, strict=True):
            for number, layer in enumerate(layers):
                n = layer(n, edge_attr, edges)
                if number < len(layers) - 1:
                    n = nn.functional.silu(n)
            noise_pred = noise_pred + readout(n, edge_attr, edge_geometry.frames, edges)
        return self.to_subspace(noise_pred, batch)
