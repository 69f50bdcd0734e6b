"""Translating checkpoints of the published implementation to ours and back.

A published checkpoint is a dict of four state dicts, one for each part of the model. Their tensors
are ours under other names, with two exceptions: tables and weights that we stack are stored one by
one, and some constants are stored that we derive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msde.chem.vocabulary import ATOM_SIZES, BOND_SIZES, atomic_weights
from msde.config import Config, ModelConfig, from_dict, leaves, make_config, to_dict
from msde.errors import MsdeError
from msde.model import MoleculeSDE

State = dict[str, Tensor]

# our part -> its state dict in the file
PARTS = {
    "encoder_2d": "model_2D",
    "encoder_3d": "model_3D",
    "score_2d_to_3d": "SDE_2Dto3D_model",
    "score_3d_to_2d": "SDE_3Dto2D_model",
}

# our name -> published names; `#` stands for a number and `*` for the last part of a name, the same
# on both sides; `@` counts the tables or channels that our tensor holds together.
_GIN = {
    "atom_embedding.weight": ["atom_encoder.atom_embedding_list.@.weight"],
    "layers.#.eps": ["gnns.#.eps"],
    "layers.#.mlp.#.*": ["gnns.#.mlp.#.*"],
    "layers.#.bond_embedding.weight": ["gnns.#.bond_encoder.bond_embedding_list.@.weight"],
    "norms.#.*": ["batch_norms.#.*"],
}
_SCHNET = {
    "embedding.weight": ["embedding.weight"],
    # The filter networks have two names there.
    "interactions.#.filter.#.*": ["interactions.#.mlp.#.*", "interactions.#.conv.nn.#.*"],
    "interactions.#.to_filters.weight": ["interactions.#.conv.lin1.weight"],
    "interactions.#.from_filters.*": ["interactions.#.conv.lin2.*"],
    "interactions.#.out.*": ["interactions.#.lin.*"],
    "out.0.*": ["lin1.*"],
    "out.2.*": ["lin2.*"],
}
_PAINN = {
    "embedding.weight": ["embedding.weight"],
    "filter.*": ["filter_net.*"],
    "messages.#.context.layers.#.*": ["interactions.#.interatomic_context_net.#.*"],
    "mixings.#.context.layers.#.*": ["mixing.#.intraatomic_context_net.#.*"],
    "mixings.#.vectors.weight": ["mixing.#.mu_channel_mix.weight"],
}
_CONFORMER = {
    "node_embedding.layers.#.*": ["node_emb.layers.#.*"],
    "edge_features.topology.input.*": ["edge_2D_emb.0.*"],
    "edge_features.topology.norm.*": ["edge_2D_emb.1.*"],
    "edge_features.topology.output.*": ["edge_2D_emb.3.*"],
    "edge_features.distance.frequency": ["dist_gaussian_fourier.W"],
    "edge_features.distance.weight": ["input_mlp.layers.0.weight"],
    "edge_features.distance.bias": ["input_mlp.layers.0.bias"],
    "edge_features.frame.coordinates.frequency": ["coff_gaussian_fourier.W"],
    "edge_features.frame.coordinates.weight": ["coff_mlp.weight"],
    "edge_features.frame.coordinates.bias": ["coff_mlp.bias"],
    "edge_features.frame.mlp.layers.#.*": ["project.layers.#.*"],
    "blocks.#.#.attention.key.*": ["score_network.gnn_layers.#.#.MHA.lin_key.*"],
    "blocks.#.#.attention.query.*": ["score_network.gnn_layers.#.#.MHA.lin_query.*"],
    "blocks.#.#.attention.value.*": ["score_network.gnn_layers.#.#.MHA.lin_value.*"],
    "blocks.#.#.attention.edge.*": ["score_network.gnn_layers.#.#.MHA.lin_edge.*"],
    "blocks.#.#.attention.root.*": ["score_network.gnn_layers.#.#.MHA.lin_skip.*"],
    "blocks.#.#.feed_forward.#.*": ["score_network.gnn_layers.#.#.FFN.#.*"],
    "blocks.#.#.norm_attention.*": ["score_network.gnn_layers.#.#.norm1.*"],
    "blocks.#.#.norm_feed_forward.*": ["score_network.gnn_layers.#.#.norm2.*"],
    "readouts.#.input_*": ["score_network.basis_mlp_modules.#.0.*"],
    "readouts.#.output_*": ["score_network.basis_mlp_modules.#.2.*"],
}
_EDGE = "edge_score.layers.#"
_PUBLISHED_EDGE = "edge_score_network.layers.#"
_TOPOLOGY = {
    "atom_type_embedding.*": ["embedding_X.*"],
    "geometry_embedding.*": ["embedding_3D.*"],
    f"{_EDGE}.attention.query_in.*": [f"{_PUBLISHED_EDGE}.attn.@.func_q.layers.0.*"],
    f"{_EDGE}.attention.query_out.*": [f"{_PUBLISHED_EDGE}.attn.@.func_q.layers.1.*"],
    f"{_EDGE}.attention.key_in.*": [f"{_PUBLISHED_EDGE}.attn.@.func_k.layers.0.*"],
    f"{_EDGE}.attention.key_out.*": [f"{_PUBLISHED_EDGE}.attn.@.func_k.layers.1.*"],
    f"{_EDGE}.value.*": [f"{_PUBLISHED_EDGE}.attn.@.func_v.*"],
    f"{_EDGE}.pair_mlp.layers.#.*": [f"{_PUBLISHED_EDGE}.mlp.layers.#.*"],
    f"{_EDGE}.node_mlp.layers.#.*": [f"{_PUBLISHED_EDGE}.multi_channel.layers.#.*"],
    "edge_score.out.layers.#.*": ["edge_score_network.final.layers.#.*"],
    "node_score.convolutions.#.*": ["node_score_network.layers.#.*"],
    "node_score.out.layers.#.*": ["node_score_network.final.layers.#.*"],
}
_NAMES = {
    "encoder_2d": _GIN,
    "encoder_3d": _SCHNET | _PAINN,
    "score_2d_to_3d": _CONFORMER,
    "score_3d_to_2d": _TOPOLOGY,
}
_CONVOLUTION = r"edge_score\.layers\.\d+\.value|node_score\.convolutions\.\d+"
_STACKED = re.compile(rf"(.*\.(query|key)_(in|out)|{_CONVOLUTION})\.\w+")  # one tensor a channel
# Dense graph convolutions are published as (inputs, outputs).
_TRANSPOSED = re.compile(rf"({_CONVOLUTION})\.weight")
_CHIRALITY = "atom_encoder.atom_embedding_list.1.weight"

# Settings that the tensors do not determine; the defaults are the published values.
UNDETERMINED = [
    "model.gin.readout",
    "model.conformer.num_heads",
    "model.topology.num_heads",
    *(
        f"model.{part}.sde.{key}"
        for part in ("conformer", "topology")
        for key in ("kind", "sigma_min", "sigma_max", "beta_min", "beta_max")
    ),
    "loss.anneal_power",
]
# Settings that the published networks lack, although the tensors might fit.
_CORRECTIONS = [
    "model.gin.chirality",
    "model.conformer.positions",
    "model.conformer.time_dim",
    "model.conformer.input_spread",
    "model.topology.time_dim",
    "model.topology.input_spread",
    "model.topology.divide_by_std",
]


@dataclass(frozen=True)
class Piece:
    """A published tensor as a part of one of ours."""

    published: str
    ours: str
    channel: int | None = None  # of a stacked tensor
    rows: slice | None = None  # of a table of several columns
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view of our tensor that is this piece, in the published orientation."""
        if self.channel is not None:
            tensor = tensor[self.channel]
        elif self.rows is not None:
            tensor = tensor[self.rows]
        return tensor.t() if self.transposed else tensor


def pieces(part: str, ours: str, tensor: Tensor) -> list[Piece]:
    """Return the published tensors that are parts of one of our tensors.

    Args:
        part: a key of PARTS.

    Raises:
        MsdeError: the published networks have no such tensor.
    """
    for pattern, published in _NAMES[part].items():
        expression = re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", r"([a-z_]+)")
        match = re.fullmatch(expression, ours)
        if match:
            names = [re.sub(r"[#*]", "{}", name).format(*match.groups()) for name in published]
            return [piece for name in names for piece in _split(name, ours, tensor)]
    raise MsdeError(f"{part}.{ours} has no place in a published checkpoint")


def _split(name: str, ours: str, tensor: Tensor) -> list[Piece]:
    if _STACKED.fullmatch(ours):
        transposed = bool(_TRANSPOSED.fullmatch(ours))
        channels = range(len(tensor))
        return [Piece(name.replace("@", str(c)), ours, c, transposed=transposed) for c in channels]
    if "@" not in name:
        return [Piece(name, ours)]
    sizes = ATOM_SIZES if ours == "atom_embedding.weight" else BOND_SIZES
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        Piece(name.replace("@", str(table)), ours, rows=slice(end - size, end))
        for table, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def constants(part: str, model: ModelConfig) -> State:
    """Return the published tensors of a part that we derive instead of storing."""
    if part == "score_2d_to_3d":
        numbers = range(model.conformer.num_blocks)
        return {f"score_network.equi_modules.{n}.eps": torch.zeros(1) for n in numbers}
    if part != "encoder_3d":
        return {}
    if model.encoder_3d == "schnet":
        offset = torch.linspace(0, model.schnet.cutoff, model.schnet.num_gaussians)
        return {
            "atomic_mass": torch.from_numpy(atomic_weights()),
            "distance_expansion.offset": offset,
        }
    offsets = torch.linspace(0, model.painn.cutoff, model.painn.num_gaussians)
    return {
        "cutoff_fn.cutoff": torch.tensor([model.painn.cutoff]),
        "radial_basis.offsets": offsets,
        "radial_basis.widths": (offsets[1] - offsets[0]).abs() * torch.ones_like(offsets),
    }


def from_published(part: str, published: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Translate the published state dict of one part to ours.

    Args:
        like: our state dict of that part at the same sizes; only its shapes are used.

    Raises:
        MsdeError: naming a tensor that is missing, of another shape, or stored twice with two
            values.
    """
    state: State = {}
    for ours, shape_of in like.items():
        whole = torch.zeros(0)
        filled: set[tuple[int | None, str]] = set()
        for piece in pieces(part, ours, shape_of):
            name = f"{PARTS[part]}: {piece.published}"
            if piece.published not in published:
                raise MsdeError(f"{name} is missing")
            found, expected = published[piece.published], piece.of(shape_of)
            if found.shape != expected.shape:
                shapes = f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
                raise MsdeError(f"{name} has shape {shapes}")
            if not filled:
                whole = torch.empty(shape_of.shape, dtype=found.dtype)
            place = (piece.channel, str(piece.rows))
            if place in filled and not torch.equal(piece.of(whole), found):
                raise MsdeError(f"{name} differs from its other copy")
            filled.add(place)
            piece.of(whole).copy_(found)
        state[ours] = whole
    return state


def _unused(
    part: str, published: Mapping[str, Tensor], like: Mapping[str, Tensor], model: ModelConfig
) -> State:
    """Return the published tensors of one part that are no part of ours.

    Raises:
        MsdeError: naming a tensor that is not a constant of the network or has another shape, or a
            constant that is missing.
    """
    used = {p.published for name, tensor in like.items() for p in pieces(part, name, tensor)}
    rest = {name: tensor for name, tensor in published.items() if name not in used}
    known = constants(part, model)
    for name, tensor in rest.items():
        if name not in known:
            raise MsdeError(f"{PARTS[part]}: {name} is not a tensor of this network")
        if tensor.shape != known[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(known[name].shape)}"
            raise MsdeError(f"{PARTS[part]}: {name} has shape {shapes}")
    for name in known.keys() - rest.keys():
        raise MsdeError(f"{PARTS[part]}: {name} is missing")
    return rest


def import_checkpoint(
    checkpoint: Mapping[str, Mapping[str, Tensor]], overrides: list[str]
) -> tuple[State, Config, State, dict[str, str]]:
    """Translate a whole published checkpoint.

    Args:
        overrides: key=value with keys of UNDETERMINED.

    Returns:
        Our state dict, the configuration, and for the export back: the tensors that we do not use,
        named `<part>.<name>`, and notes.

    Raises:
        MsdeError: an override of a setting that the tensors determine, or the name of a tensor
            that is missing, extra or of another shape.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key not in UNDETERMINED:
            raise MsdeError(f"{key} is not an option here; options are {', '.join(UNDETERMINED)}")
    config = make_config("paper", overrides=overrides)
    for name in [*PARTS.values(), *checkpoint]:
        if name not in checkpoint or name not in PARTS.values():
            what = "is missing" if name not in checkpoint else "is not known"
            raise MsdeError(f"{name} {what}; expected {', '.join(PARTS.values())}")
    published = {part: dict(checkpoint[theirs]) for part, theirs in PARTS.items()}
    for part, theirs in PARTS.items():
        try:
            infer_sizes(part, published[part], config.model)
        except KeyError as error:
            raise MsdeError(f"{theirs}: {error.args[0]} is missing") from error
        except (IndexError, ValueError) as error:
            raise MsdeError(f"{theirs}: a tensor has another number of dimensions") from error
    config = from_dict(to_dict(config), "the sizes of the tensors")  # with its checks
    if config.model.gin.readout == "concat":
        raise MsdeError(
            "model.gin.readout=concat has no published contrastive objective: the views differ in "
            "width; import with another readout"
        )
    notes = {}
    chirality = published["encoder_2d"][_CHIRALITY]
    if len(chirality) == ATOM_SIZES[1] - 1:
        # Older vocabularies lack the last row, of unlisted values; the row before is nearest.
        published["encoder_2d"][_CHIRALITY] = torch.cat([chirality, chirality[-1:]])
        notes["chirality_rows"] = str(len(chirality))
    with torch.device("meta"):
        model = MoleculeSDE(config)
    state: State = {}
    kept: State = {}
    for part, theirs in PARTS.items():
        like = getattr(model, part).state_dict()
        ours = from_published(part, published[part], like)
        state |= {f"{part}.{name}": tensor for name, tensor in ours.items()}
        rest = _unused(part, published[part], like, config.model)
        kept |= {f"{theirs}.{name}": tensor for name, tensor in rest.items()}
    return state, config, kept, notes


def export_checkpoint(
    state: Mapping[str, Tensor], config: Config, kept: Mapping[str, Tensor], notes: dict[str, str]
) -> dict[str, State]:
    """Translate our state dict to a published checkpoint.

    Args:
        kept, notes: what `import_checkpoint` returned, if the weights came from there.

    Raises:
        MsdeError: naming a setting or tensor that the published networks do not have.
    """
    set_to, defaults = leaves(config), leaves(Config())
    for key in _CORRECTIONS:
        if set_to[key] != defaults[key]:
            raise MsdeError(f"{key}={set_to[key]} is unknown to the published networks")
    checkpoint: dict[str, State] = {}
    for part, theirs in PARTS.items():
        checkpoint[theirs] = constants(part, config.model)
        for name in checkpoint[theirs]:
            checkpoint[theirs][name] = kept.get(f"{theirs}.{name}", checkpoint[theirs][name])
    for name, tensor in state.items():
        part, _, ours = name.partition(".")
        if part not in PARTS:
            raise MsdeError(f"{name} has no place in a published checkpoint")
        for piece in pieces(part, ours, tensor):
            checkpoint[PARTS[part]][piece.published] = piece.of(tensor).contiguous()
    rows = int(notes.get("chirality_rows", ATOM_SIZES[1]))
    checkpoint["model_2D"][_CHIRALITY] = checkpoint["model_2D"][_CHIRALITY][:rows]
    return checkpoint


def infer_sizes(part: str, state: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Set the sizes and variants in `model` to those of the published tensors of one part.

    Raises:
        KeyError: a tensor is missing.
    """

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in state)
        numbers = [int(match[1]) for match in found if match]
        if not numbers:
            raise KeyError(pattern.replace(r"(\d+)", "0").replace("\\", ""))
        return 1 + max(numbers)

    if part == "encoder_2d":
        model.hidden_dim = state["atom_encoder.atom_embedding_list.0.weight"].shape[1]
        model.gin.num_layers = count(r"gnns\.(\d+)\.eps")
    elif part == "encoder_3d" and "filter_net.weight" in state:
        model.encoder_3d = "painn"
        model.hidden_dim = state["embedding.weight"].shape[1]
        model.painn.num_interactions = count(r"interactions\.(\d+)\.")
        model.painn.num_gaussians = state["filter_net.weight"].shape[1]
        model.painn.cutoff = float(state["radial_basis.offsets"][-1])
    elif part == "encoder_3d":
        model.encoder_3d = "schnet"
        model.hidden_dim = state["embedding.weight"].shape[1]
        filters, gaussians = state["interactions.0.mlp.0.weight"].shape
        model.schnet.num_filters, model.schnet.num_gaussians = filters, gaussians
        model.schnet.num_interactions = count(r"interactions\.(\d+)\.")
        model.schnet.cutoff = float(state["distance_expansion.offset"][-1])
    elif part == "score_2d_to_3d":
        conformer = model.conformer
        conformer.hidden_dim, model.hidden_dim = state["node_emb.layers.0.weight"].shape
        conformer.edges = "frame_distance" if "dist_gaussian_fourier.W" in state else "frame"
        conformer.basis_dim = state["score_network.basis_mlp_modules.0.0.weight"].shape[0]
        conformer.num_blocks = count(r"score_network\.gnn_layers\.(\d+)\.")
        conformer.num_layers = count(r"score_network\.gnn_layers\.0\.(\d+)\.")
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
