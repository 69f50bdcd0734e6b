"""The parameter layout of the published implementation, and its translation to ours.

A published checkpoint holds four state dicts, one for each part of the model. Their tensors are
ours under other names, except that tables and weights which we keep stacked lie there one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from msde.config import ModelConfig

# published name -> our name; `#` stands for a number. Where several published names map to the
# same name of ours, CONCATENATE or STACK says how their tensors become one.
_GIN = {
    "atom_encoder.atom_embedding_list.#.weight": "atom_embedding.weight",
    "gnns.#.eps": "layers.#.eps",
    "gnns.#.mlp.#.*": "layers.#.mlp.#.*",
    "gnns.#.bond_encoder.bond_embedding_list.#.weight": "layers.#.bond_embedding.weight",
    "batch_norms.#.*": "norms.#.*",
}
_SCHNET = {
    "embedding.weight": "embedding.weight",
    "interactions.#.mlp.#.*": "interactions.#.filter.#.*",
    "interactions.#.conv.lin1.weight": "interactions.#.to_filters.weight",
    "interactions.#.conv.lin2.*": "interactions.#.from_filters.*",
    "interactions.#.lin.*": "interactions.#.out.*",
    "lin1.*": "out.0.*",
    "lin2.*": "out.2.*",
}
_CONFORMER = {
    "node_emb.layers.#.*": "node_embedding.layers.#.*",
    "edge_2D_emb.0.*": "topology_edges.input.*",
    "edge_2D_emb.1.*": "topology_edges.norm.*",
    "edge_2D_emb.3.*": "topology_edges.output.*",
    "dist_gaussian_fourier.W": "distance_fourier.w",
    "input_mlp.layers.#.*": "distance_mlp.layers.#.*",
    "coff_gaussian_fourier.W": "frame_edges.fourier.w",
    "coff_mlp.*": "frame_edges.coordinates.*",
    "project.layers.#.*": "frame_edges.mlp.layers.#.*",
    "score_network.gnn_layers.#.#.MHA.lin_key.*": "blocks.#.#.attention.key.*",
    "score_network.gnn_layers.#.#.MHA.lin_query.*": "blocks.#.#.attention.query.*",
    "score_network.gnn_layers.#.#.MHA.lin_value.*": "blocks.#.#.attention.value.*",
    "score_network.gnn_layers.#.#.MHA.lin_edge.*": "blocks.#.#.attention.edge.*",
    "score_network.gnn_layers.#.#.MHA.lin_skip.*": "blocks.#.#.attention.root.*",
    "score_network.gnn_layers.#.#.FFN.#.*": "blocks.#.#.feed_forward.#.*",
    "score_network.gnn_layers.#.#.norm1.*": "blocks.#.#.norm_attention.*",
    "score_network.gnn_layers.#.#.norm2.*": "blocks.#.#.norm_feed_forward.*",
    "score_network.basis_mlp_modules.#.0.*": "readouts.#.input_*",
    "score_network.basis_mlp_modules.#.2.*": "readouts.#.output_*",
}
_TOPOLOGY = {
    "embedding_X.*": "atom_type_embedding.*",
    "embedding_3D.*": "geometry_embedding.*",
    "edge_score_network.layers.#.attn.#.func_q.layers.0.*": (
        "edge_score.layers.#.attention.query_in.*"
    ),
    "edge_score_network.layers.#.attn.#.func_q.layers.1.*": (
        "edge_score.layers.#.attention.query_out.*"
    ),
    "edge_score_network.layers.#.attn.#.func_k.layers.0.*": (
        "edge_score.layers.#.attention.key_in.*"
    ),
    "edge_score_network.layers.#.attn.#.func_k.layers.1.*": (
        "edge_score.layers.#.attention.key_out.*"
    ),
    "edge_score_network.layers.#.attn.#.func_v.*": "edge_score.layers.#.value.*",
    "edge_score_network.layers.#.mlp.layers.#.*": "edge_score.layers.#.pair_mlp.layers.#.*",
    "edge_score_network.layers.#.multi_channel.layers.#.*": (
        "edge_score.layers.#.node_mlp.layers.#.*"
    ),
    "edge_score_network.final.layers.#.*": "edge_score.out.layers.#.*",
    "node_score_network.layers.#.*": "node_score.convolutions.#.*",
    "node_score_network.final.layers.#.*": "node_score.out.layers.#.*",
}
NAMES: dict[str, dict[str, str]] = {
    "encoder_2d": _GIN,
    "encoder_3d": _SCHNET,
    "score_2d_to_3d": _CONFORMER,
    "score_3d_to_2d": _TOPOLOGY,
}
# Buffers that follow from the configuration, a constant that is never used, and second names of the
# filter networks.
_IGNORED = re.compile(
    r"atomic_mass|distance_expansion\.offset|.*equi_modules\.\d+\.eps|.*\.conv\.nn\..*"
)
_CONCATENATE = re.compile(r".*_embedding\.weight")  # tables of one embedding, along the rows
_CONVOLUTION = r"edge_score\.layers\.\d+\.value|node_score\.convolutions\.\d+"
_STACK = re.compile(rf"(.*\.(query|key)_(in|out)|{_CONVOLUTION})\.\w+")  # one tensor a channel
# Dense graph convolutions are published as (inputs, outputs).
_TRANSPOSE = re.compile(rf"({_CONVOLUTION})\.weight")


def our_name(part: str, published: str) -> str | None:
    """Return our name of a published tensor of one part, or None where we have no use for it.

    Raises:
        KeyError: the name is not part of the published layout.
    """
    if _IGNORED.fullmatch(published):
        return None
    for pattern, ours in NAMES[part].items():
        expression = re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", r"([a-z_]+)")
        match = re.fullmatch(expression, published)
        if match:
            # Leftover groups are numbers that we stack over.
            return re.sub(r"[#*]", "{}", ours).format(*_kept_groups(pattern, ours, match.groups()))
    raise KeyError(published)


def _kept_groups(pattern: str, ours: str, groups: tuple[str, ...]) -> list[str]:
    """Drop the numbers that count tables or channels: the last ones before the name's end."""
    surplus = pattern.count("#") - ours.count("#")
    numbers = [g for g in groups if g.isdigit()]
    names = [g for g in groups if not g.isdigit()]
    return [*numbers[: len(numbers) - surplus], *names]


def from_published(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the published state dict of one part to ours.

    Args:
        part: our name of the part, a key of NAMES.
    """
    gathered: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        ours = our_name(part, name)
        if ours is not None:
            gathered.setdefault(ours, []).append(tensor)
    return {name: _join(name, tensors) for name, tensors in gathered.items()}


def _join(name: str, tensors: list[Tensor]) -> Tensor:
    if _CONCATENATE.fullmatch(name) and len(tensors) > 1:
        return torch.cat(tensors)
    if _STACK.fullmatch(name):
        if _TRANSPOSE.fullmatch(name):
            tensors = [t.t() for t in tensors]
        return torch.stack(tensors).contiguous()
    (tensor,) = tensors
    return tensor


def infer_sizes(part: str, state: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Set the sizes in `model` to those of the published tensors of one part."""

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in state)
        return 1 + max(int(match[1]) for match in found if match)

    if part == "encoder_2d":
        model.hidden_dim = state["atom_encoder.atom_embedding_list.0.weight"].shape[1]
        model.gin.num_layers = count(r"gnns\.(\d+)\.eps")
    elif part == "encoder_3d":
        model.hidden_dim = state["embedding.weight"].shape[1]
        filters, gaussians = state["interactions.0.mlp.0.weight"].shape
        model.schnet.num_filters, model.schnet.num_gaussians = filters, gaussians
        model.schnet.num_interactions = count(r"interactions\.(\d+)\.")
    elif part == "score_2d_to_3d":
        model.conformer.hidden_dim, model.hidden_dim = state["node_emb.layers.0.weight"].shape
        basis = state["score_network.basis_mlp_modules.0.0.weight"]
        model.conformer.basis_dim = basis.shape[0]
        model.conformer.num_blocks = count(r"score_network\.gnn_layers\.(\d+)\.")
        model.conformer.num_layers = count(r"score_network\.gnn_layers\.0\.(\d+)\.")
    else:
        topology = model.topology
        model.hidden_dim = state["embedding_3D.weight"].shape[0]
        topology.node_dim = state["node_score_network.layers.0.weight"].shape[1]
        first_layer = "edge_score_network.layers.0"
        second = "edge_score_network.layers.1.attn.0.func_q.layers.0.weight"
        topology.attention_dim = state[second].shape[0] // 2
        topology.num_layers = count(r"edge_score_network\.layers\.(\d+)\.")
        topology.num_linears = count(r"edge_score_network\.layers\.0\.mlp\.layers\.(\d+)\.")
        last_linear = f"mlp.layers.{topology.num_linears - 1}.weight"
        last_layer = f"edge_score_network.layers.{topology.num_layers - 1}"
        topology.hidden_channels = state[f"{first_layer}.{last_linear}"].shape[0]
        topology.final_channels = state[f"{last_layer}.{last_linear}"].shape[0]
