"""3D -> 2D: the score network of atom types and adjacency given the geometry.

SE(3)-invariant, after the dense graph score networks of GDSS (Jo et al. 2022). Atoms are packed and
pairs are stored once for both orders. Only products within a molecule (attention logits, graph
convolutions) may use a padded layout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import TopologyScoreConfig
from msde.data.batch import MoleculeBatch
from msde.model.layers import MLP, Linear, TimeEmbedding, at_least_float32, index_rows
from msde.model.sde import input_scale, make_sde, per_row
from msde.ops import Pairs, PairWeights, linear, pair_attention, pair_sum


class GraphWeights:
    """Channels of weighted adjacency, normalised by degree: D^-1/2 (A + I) D^-1/2 with D >= 1."""

    def __init__(self, adj: PairWeights, root: Tensor) -> None:
        """Keep A, and D^-1/2 as `root`, (channels, num_atoms, 1)."""
        self.adj, self.root = adj, root

    @classmethod
    def normalise(cls, adj: Tensor, pairs: Pairs) -> GraphWeights:
        """Normalise each channel of `adj`, (num_pairs, channels), on its own."""
        weights = PairWeights(at_least_float32(adj), pairs)
        ones = weights.packed.new_ones(adj.shape[1], len(pairs.graph), 1)
        degree = 1 + pair_sum(weights, ones)  # (channels, num_atoms, 1)
        return cls(weights, degree.clamp(min=1).rsqrt())

    def channel(self, number: int) -> GraphWeights:
        """Return the weights of one channel alone."""
        return GraphWeights(self.adj.channel(number), self.root[number : number + 1])

    def propagate(self, x: Tensor) -> Tensor:
        """Multiply each channel's features by its weights, (channels, num_atoms, dim)."""
        scaled = self.root * at_least_float32(x)  # cheaper at the atoms than at the pairs
        return self.root * (pair_sum(self.adj, scaled) + scaled)


class ChannelLinear(nn.Module):
    """One linear map for each channel: (channels, rows, inputs) to (channels, rows, outputs)."""

    def __init__(self, channels: int, inputs: int, outputs: int) -> None:
        """Give every channel xavier-uniform weights and zero biases."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(channels, outputs))
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """Map x; all channels share an x of shape (rows, inputs)."""
        return linear(x, self.weight, self.bias, activation)


class GraphConvolution(ChannelLinear):
    """A dense graph convolution for each channel: weights (x W) + bias."""

    def forward(self, x: Tensor, weights: GraphWeights) -> Tensor:
        """Map (num_atoms, inputs) to (channels, num_atoms, outputs)."""
        return weights.propagate(linear(x, self.weight)) + self.bias.unsqueeze(1)


class ChannelAttention(nn.Module):
    """One attention map for each channel of the adjacency, from the atoms' features alone."""

    def __init__(self, channels: int, input_dim: int, attention_dim: int, num_heads: int) -> None:
        """Make the MLPs of queries and keys, of width 2 * attention_dim, for each channel."""
        super().__init__()
        width = 2 * attention_dim
        self.chunk = attention_dim // num_heads
        self.query_in = ChannelLinear(channels, input_dim, width)
        self.query_out = ChannelLinear(channels, width, width)
        self.key_in = ChannelLinear(channels, input_dim, width)
        self.key_out = ChannelLinear(channels, width, width)

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Map (num_atoms, input_dim) to symmetric attention, (num_pairs, channels)."""
        q = self.query_out(self.query_in(x, "tanh"))  # (channels, num_atoms, width)
        k = self.key_out(self.key_in(x, "tanh"))  # (channels, num_atoms, width)
        return pair_attention(q, k, self.chunk, pairs)


class EdgeLayer(nn.Module):
    """A joint update of atom features and of the channels of the adjacency."""

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        channels_in: int,
        channels_out: int,
        config: TopologyScoreConfig,
    ) -> None:
        """Map `channels_in` adjacency channels to `channels_out`."""
        super().__init__()
        hidden = 2 * max(channels_in, channels_out)
        node = config.node_dim
        heads = config.num_heads
        self.attention = ChannelAttention(channels_in, input_dim, attention_dim, heads)
        self.value = GraphConvolution(channels_in, input_dim, node)
        self.pair_mlp = MLP(
            [2 * channels_in, *[hidden] * (config.num_linears - 1), channels_out],
            "elu",
        )
        self.node_mlp = MLP([channels_in * node, hidden, node], "elu")

    def update_pairs(self, x: Tensor, adj: Tensor, pairs: Pairs) -> Tensor:
        """Map adjacency, (num_pairs, channels_in), to new channels, (num_pairs, channels_out)."""
        attention = self.attention(x, pairs)  # (num_pairs, channels_in)
        # Published: the output plus its transpose, which is equal since all inputs are symmetric.
        return 2 * self.pair_mlp(torch.cat([attention, adj.to(attention.dtype)], dim=-1))

    def update_atoms(self, x: Tensor, weights: GraphWeights) -> Tensor:
        """Map atom features, (num_atoms, input_dim), to new ones, (num_atoms, node_dim)."""
        values = self.value(x, weights)  # (channels_in, num_atoms, node_dim)
        return torch.tanh(self.node_mlp(values.transpose(0, 1).flatten(1)))


class EdgeScore(nn.Module):
    """Predicts the noise of the adjacency from the noised adjacency and atom features."""

    def __init__(self, input_dim: int, config: TopologyScoreConfig) -> None:
        """Build `config.num_layers` layers; the channels start as A and A^2."""
        super().__init__()
        hidden = [config.hidden_channels] * (config.num_layers - 1)
        channels = [2, *hidden, config.final_channels]
        dims = [input_dim, *[config.node_dim] * (config.num_layers - 1)]
        # Published: the first layer's attention has the width of the atom features.
        widths = [config.node_dim, *[config.attention_dim] * (config.num_layers - 1)]
        # Nothing uses the output of the last layer's node branch, so it is not computed. Published
        # checkpoints have its parameters, so they stay.
        self.layers = nn.ModuleList(
            EdgeLayer(*sizes, config)
            for sizes in zip(dims, widths, channels[:-1], channels[1:], strict=True)
        )
        width = sum(channels)
        self.time_of_edges = TimeEmbedding(config.time_dim, width) if config.time_dim else None
        self.out = MLP([width, 2 * width, 2 * width, 1], "silu")

    def forward(
        self,
        x: Tensor,
        powers: Tensor,
        weights: GraphWeights,
        t: Tensor,
        batch: MoleculeBatch,
        pairs: Pairs,
    ) -> Tensor:
        """Return the predicted noise of each pair, (num_pairs,).

        Args:
            x: (num_atoms, input_dim) atom features.
            powers: (num_pairs, 2) the noised adjacency and its square.
            weights: the normalised `powers`.
            t: (num_graphs,) times.
        """
        adj, channels = powers, [powers]
        for number, layer in enumerate(self.layers):
            updated = layer.update_pairs(x, adj, pairs)
            if number < len(self.layers) - 1:
                weights = weights if number == 0 else GraphWeights.normalise(adj, pairs)
                x = layer.update_atoms(x, weights)
            adj = updated
            channels.append(adj)
        features = torch.cat(channels, dim=-1)  # (num_pairs, width)
        if self.time_of_edges is not None:
            features = features + index_rows(self.time_of_edges(t), batch.pair_batch)
        return self.out(features).squeeze(-1)


class NodeScore(nn.Module):
    """Predicts the noise of atom types from graph convolutions over the noised adjacency."""

    def __init__(self, input_dim: int, config: TopologyScoreConfig) -> None:
        """Build `config.num_layers` graph convolutions and an MLP over all their outputs."""
        super().__init__()
        dims = [input_dim, *[config.node_dim] * config.num_layers]
        self.convolutions = nn.ModuleList(
            GraphConvolution(1, i, o) for i, o in zip(dims[:-1], dims[1:], strict=True)
        )
        width = sum(dims)
        self.out = MLP([width, 2 * width, 2 * width, ATOM_SIZES[0]], "silu")

    def forward(self, x: Tensor, weights: GraphWeights) -> Tensor:
        """Map (num_atoms, input_dim) to (num_atoms, 119)."""
        features = [x]  # (num_atoms, width of each layer)
        for convolution in self.convolutions:
            features.append(torch.tanh(convolution(features[-1], weights)[0]))
        return self.out(torch.cat(features, dim=-1))


class TopologyScore(nn.Module):
    """The score network of atom types and adjacency given the geometry, and its SDE."""

    type_channels = ATOM_SIZES[0]
    bond_channels = 1
    position_noise = 0.0  # A
    hidden_types = 0.0

    def __init__(self, input_dim: int, config: TopologyScoreConfig) -> None:
        """Build the network for 3D representations of width `input_dim`."""
        super().__init__()
        self.sde = make_sde(config.sde)
        self.divide_by_std = config.divide_by_std
        self.input_spread = config.input_spread
        self.time_of_nodes = TimeEmbedding(config.time_dim, input_dim) if config.time_dim else None
        self.atom_type_embedding = Linear(ATOM_SIZES[0], input_dim)
        self.geometry_embedding = Linear(input_dim, input_dim)
        self.edge_score = EdgeScore(input_dim, config)
        self.node_score = NodeScore(input_dim, config)

    def forward(
        self, types_t: Tensor, adj_t: Tensor, t: Tensor, h_3d: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Predict the standard-normal noise in atom types and in adjacency.

        Args:
            types_t: (num_atoms, 119) noised one-hot atom types.
            adj_t: (num_pairs,) noised bond types, 0 for no bond, 1 single, ... 4 aromatic, 5
                another.
            t: (num_graphs,) times in (0, 1].
            h_3d: (num_atoms, input_dim) representations of the geometry.

        Returns:
            (num_atoms, 119) and (num_pairs,).
        """
        pairs = batch.pairs
        scale = input_scale(self.sde, t, self.input_spread)  # (num_graphs,)
        types_t = types_t * per_row(scale[batch.batch], types_t)  # (num_atoms, 119)
        adj_t = adj_t * scale[batch.pair_batch]  # (num_pairs,)
        h = self.geometry_embedding(h_3d)  # (num_atoms, input_dim)
        x = self.atom_type_embedding(types_t, plus=h)  # (num_atoms, input_dim)
        if self.time_of_nodes is not None:
            x = x + index_rows(self.time_of_nodes(t), batch.batch)
        dense = pairs.padded.pad_pairs(adj_t.unsqueeze(-1))  # (num_graphs, size, size)
        squared = pairs.padded.pack_pairs(torch.bmm(dense, dense))  # (num_pairs, 1)
        powers = torch.cat([adj_t.unsqueeze(-1), squared], dim=-1)  # (num_pairs, 2)
        weights = GraphWeights.normalise(powers, pairs)
        adj_pred = self.edge_score(x, powers, weights, t, batch, pairs)  # (num_pairs,)
        types_pred = self.node_score(x, weights.channel(0))  # (num_atoms, 119)
        if self.divide_by_std:
            std = self.sde.marginal_prob(t, t)[1]  # (num_graphs,)
            return types_pred / per_row(std[batch.batch], x), adj_pred / std[batch.pair_batch]
        return types_pred, adj_pred
