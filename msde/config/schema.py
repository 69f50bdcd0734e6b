"""The schema of the configuration: a tree of dataclasses with its defaults.

DeepSpeed's own JSON owns slots per step, precision, ZeRO, offload and clipping; this tree owns the
rest, and nothing stands in both. Values that follow from others are computed, not configured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    """Which molecules are trained on and how many a step takes."""

    validation_fraction: float = 0.02  # held out: those with the lowest ids, which are hashes
    molecules_per_step: int = 256  # per optimizer step, shared by its slots ...
    molecules_per_slot: int | None = None  # ... unless the size of a slot is given here ...
    atoms_per_slot: int | None = None  # ... or here, by its atoms
    masking_ratio: float = 0.0  # share of atoms hidden: training sees a connected subgraph
    max_validation_molecules: int = 10_000  # of the held-out ones, how many validation looks at
    workers: int = 1  # threads that read ahead; 0: read when a step asks for it
    resident: bool = False  # keep all molecules on the device
    stage_dir: str | None = None  # local folder to copy shards to before they are read


@dataclass
class GINConfig:
    """The 2D encoder."""

    num_layers: int = 5
    dropout: float = 0.0
    readout: Literal["last", "concat", "max", "sum"] = "last"  # over the layers, per atom
    # `tag` is RDKit's mark, which depends on the order of the atoms; `cip` is R, S, r or s.
    chirality: Literal["tag", "cip"] = "tag"


@dataclass
class SchNetConfig:
    """SchNet, a 3D encoder."""

    num_interactions: int = 6
    num_filters: int = 128
    num_gaussians: int = 51
    cutoff: float = 10.0  # A


@dataclass
class PaiNNConfig:
    """PaiNN, a 3D encoder."""

    num_interactions: int = 3
    num_gaussians: int = 20
    cutoff: float = 5.0  # A
    train_hydrogen: bool = False  # published: hydrogen's embedding is a padding row of zeros


@dataclass
class SDEConfig:
    """A forward SDE; the range of the other kinds is not used."""

    kind: Literal["VE", "VP", "subVP"] = "VE"
    sigma_min: float = 0.2  # VE, in the unit of the data
    sigma_max: float = 1.0
    beta_min: float = 0.2  # VP and subVP
    beta_max: float = 1.0
    scale: float = 1.0  # VP and subVP: std of the prior, in the unit of the data


@dataclass
class ConformerScoreConfig:
    """The 2D -> 3D score network and its SDE on positions."""

    sde: SDEConfig = field(default_factory=SDEConfig)
    edges: Literal["frame", "frame_distance"] = "frame_distance"  # how edges see the geometry
    # `centred`: noise and positions live where each molecule's mean is zero.
    positions: Literal["absolute", "centred"] = "absolute"
    time_dim: int = 0  # Fourier features of t; 0: the network does not see t, as published
    input_spread: float | None = None  # A; noised positions are brought to this spread
    hidden_dim: int = 32
    basis_dim: int = 128
    num_heads: int = 8
    num_blocks: int = 2
    num_layers: int = 2  # attention layers in a block
    dropout: float = 0.1


@dataclass
class TopologyScoreConfig:
    """The 3D -> 2D score network and its SDE on atom types and adjacency."""

    sde: SDEConfig = field(default_factory=lambda: SDEConfig(sigma_min=0.1))
    time_dim: int = 0  # Fourier features of t; 0: the network does not see t, as published
    input_spread: float | None = None  # noised types and bonds are brought to this spread
    node_dim: int = 16
    attention_dim: int = 16
    num_heads: int = 4
    num_layers: int = 4
    num_linears: int = 3  # layers of the pair MLPs
    hidden_channels: int = 8
    final_channels: int = 4
    divide_by_std: bool = True  # the published network's output is noise times std


@dataclass
class ModelConfig:
    """Both encoders and both score networks."""

    hidden_dim: int = 300
    encoder_3d: Literal["schnet", "painn"] = "schnet"
    gin: GINConfig = field(default_factory=GINConfig)
    schnet: SchNetConfig = field(default_factory=SchNetConfig)
    painn: PaiNNConfig = field(default_factory=PaiNNConfig)
    conformer: ConformerScoreConfig = field(default_factory=ConformerScoreConfig)
    topology: TopologyScoreConfig = field(default_factory=TopologyScoreConfig)


@dataclass
class LossConfig:
    """The three objectives and their coefficients."""

    coefficient_contrastive: float = 1.0
    coefficient_2d_to_3d: float = 1.0
    coefficient_3d_to_2d: float = 1.0
    contrastive: Literal["node_ebm_nce", "graph_ebm_nce", "info_nce"] = "node_ebm_nce"
    temperature: float = 0.1  # of the contrastive logits
    num_shifts: int = 1  # negatives of each molecule in graph_ebm_nce
    negatives: Literal["slot", "ranks"] = "slot"  # whose atoms or molecules are drawn from
    exclude_true_pairs: bool = False  # node_ebm_nce: never draw an atom as its own negative
    anneal_power: float = 0.0  # score losses are weighted by std^anneal_power
    # What pairs up antithetic times: neighbours in the slot (published), or two epochs.
    times: Literal["antithetic_in_slot", "antithetic_over_epochs"] = "antithetic_in_slot"
    num_timesteps: int = 1000  # of the grid that training times are drawn from


@dataclass
class OptimConfig:
    """Adam with one learning-rate scale for each part of the model, and a schedule."""

    lr: float = 1e-4
    scale_encoder_2d: float = 1.0
    scale_encoder_3d: float = 0.1
    scale_2d_to_3d: float = 1.0
    scale_3d_to_2d: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0


@dataclass
class RunConfig:
    """How long a run lasts and how often it reports."""

    seed: int = 0
    epochs: float = 50.0
    steps: int | None = None  # optimizer steps; overrides epochs
    log_every: int = 10  # steps
    save_every: int = 1000  # steps
    validate_every: int = 500  # steps
    keep_last: int = 3  # checkpoints ...
    keep_every: int | None = None  # ... and those of every so many steps
    comm_timeout: float = 600.0  # seconds that ranks wait for each other
    max_skipped_steps: int = 5  # in a row, for losses or gradients that are not finite
    spike_factor: float = 0.0  # leave out steps with a loss so many times its mean; 0 is off
    ema_decay: float = 0.0  # of an exponential moving average of the weights; 0 is off
    activation_checkpointing: bool = False  # make hidden layers again in the backward pass
    cuda_graphs: bool = False  # record steps, of sizes filled up to repeat, and replay them


@dataclass
class Config:
    """Everything that decides a run, besides the data and DeepSpeed's JSON."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Keys that had another name before. Configurations that were stored with it can still be loaded.
RENAMED = {"run.max_left_out": "run.max_skipped_steps"}


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the configuration as one flat mapping from dotted keys to values."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= leaves(value, f"{prefix}{f.name}.")
        else:
            flat[f"{prefix}{f.name}"] = value
    return flat
