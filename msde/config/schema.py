"""The schema of the configuration: a tree of dataclasses with its defaults.

DeepSpeed's own JSON owns slots per step, precision, ZeRO, offload and clipping; this tree owns the
rest, and no fact stands in both. Values that follow from others are computed, not configured. The
defaults are the preset `paper`. The comment above a key explains it in docs/configuration.md, which
`python -m msde.config.document --write` makes from this file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

# Layers of the 2D encoder that are read after pretraining: those that it had, or others.
Readout = Literal["pretrained", "last", "concat", "max", "sum"]


@dataclass
class DataConfig:
    """Which molecules a run trains on, and how many of them a step takes.

    A slot is the list of molecules that one forward pass sees.
    """

    # Share of the molecules that is held out for validation: those with the lowest ids, which are
    # hashes.
    validation_fraction: float = 0.02
    # Molecules of an optimizer step, shared evenly by its slots. Not used where the size of a slot
    # is given.
    molecules_per_step: int = 256
    # Most molecules of a slot; one for 2 or 3 may hold up to 4, so that none has a single molecule.
    # Excludes `data.atoms_per_slot`.
    molecules_per_slot: int | None = None
    # Most atoms of a slot. Excludes `data.molecules_per_slot`.
    atoms_per_slot: int | None = None
    # Share of each molecule's atoms that training does not see: it sees a random connected
    # subgraph of the others. 0 is off.
    masking_ratio: float = 0.0
    # Share of the molecules, drawn anew in each epoch, that training sees without their hydrogens.
    # For shards with hydrogens, so that the encoders serve molecules with and without them.
    hydrogen_dropout: float = 0.0
    # Most held-out molecules that one validation looks at.
    max_validation_molecules: int = 10_000
    # Threads that read ahead of training. 0 reads a batch when a step asks for it.
    workers: int = 1
    # Keep all molecules in the device's memory, about 0.5 kB each.
    resident: bool = False
    # Local folder that shards are copied to before they are read.
    stage_dir: str | None = None


@dataclass
class GINConfig:
    """GIN, the 2D encoder (Xu et al. 2019)."""

    # Message-passing layers.
    num_layers: int = 5
    # Dropout after each layer.
    dropout: float = 0.0
    # How an atom's representation is made of the outputs of all layers.
    readout: Literal["last", "concat", "max", "sum"] = "last"
    # Chirality feature. `tag` is RDKit's tag, which depends on the order of the atoms; `cip` is the
    # CIP label R, S, r or s; `unsigned` is whether there is a label, the same for mirror images.
    chirality: Literal["tag", "cip", "unsigned"] = "tag"


@dataclass
class SchNetConfig:
    """SchNet, a 3D encoder (Schuett et al. 2017)."""

    # Interaction blocks.
    num_interactions: int = 6
    # Width of the continuous filters.
    num_filters: int = 128
    # Gaussians that a distance is expanded in, from 0 to the cutoff.
    num_gaussians: int = 51
    # Distance beyond which atoms do not see each other, in Angstrom.
    cutoff: float = 10.0


@dataclass
class PaiNNConfig:
    """PaiNN, a 3D encoder (Schuett et al. 2021)."""

    # Pairs of a message block and a mixing block.
    num_interactions: int = 3
    # Gaussians that a distance is expanded in, from 0 to the cutoff.
    num_gaussians: int = 20
    # Distance beyond which atoms do not see each other, in Angstrom.
    cutoff: float = 5.0
    # Train the embedding of hydrogen. The published one is a padding row that stays zero.
    train_hydrogen: bool = False


@dataclass
class SDEConfig:
    """The forward SDE on t in [0, 1] (Song et al. 2021); only its own kind's values are used."""

    # Variance exploding, variance preserving or sub-variance preserving.
    kind: Literal["VE", "VP", "subVP"] = "VE"
    # VE: std of the noise at t = 0, in the unit of the data; more than 0.
    sigma_min: float = 0.2
    # VE: std of the noise at t = 1, in the unit of the data; more than `sigma_min`.
    sigma_max: float = 1.0
    # VP and sub-VP: beta at t = 0; more than 0.
    beta_min: float = 0.2
    # VP and sub-VP: beta at t = 1; more than `beta_min`.
    beta_max: float = 1.0
    # VP and sub-VP: std of the prior, in the unit of the data.
    scale: float = 1.0


@dataclass
class ConformerScoreConfig:
    """The score network of positions given the topology (2D to 3D). Its SDE is in Angstrom."""

    sde: SDEConfig = field(default_factory=SDEConfig)
    # Edge features. `frame` adds those of the edge frames to those of the topology (01 in the
    # published code); `frame_distance` also weighs the latter by the distance (02). `all_pairs` is
    # another network, to generate conformers with: it needs `centred` positions, `time_dim` and
    # `input_spread`, and has no dropout.
    edges: Literal["frame", "frame_distance", "all_pairs"] = "frame_distance"
    # Where positions and noise live. `centred`: the mean over each molecule's atoms is zero.
    positions: Literal["absolute", "centred"] = "absolute"
    # Fourier features of the time, an even number. 0: the network does not see the time.
    time_dim: int = 0
    # Std of the positions, in Angstrom, that noised positions are scaled back to. null: no scaling.
    input_spread: float | None = None
    # Width of node and edge features.
    hidden_dim: int = 32
    # Hidden units of the equivariant readout; in `all_pairs`, of the MLP of each edge.
    basis_dim: int = 128
    # Attention heads; their number divides `hidden_dim`.
    num_heads: int = 8
    # Blocks of attention layers, each with an equivariant readout.
    num_blocks: int = 2
    # Attention layers of a block; `all_pairs` has one.
    num_layers: int = 2
    # Dropout of attention weights and in the feed-forward networks.
    dropout: float = 0.1


@dataclass
class TopologyScoreConfig:
    """The score network of atom types and adjacency given the geometry (3D to 2D).

    Its SDE is in the unit of one-hot atom types and of bond types (0 none, 1 single, ...).
    """

    sde: SDEConfig = field(default_factory=lambda: SDEConfig(sigma_min=0.1))
    # How bonds diffuse. `scalar`: the bond type is one number a pair, as published. `one_hot` is
    # another network, to find bonds with: a channel for each class of bond, known atom types. It
    # needs `time_dim`, and of the keys below uses `position_noise`, `hidden_types`, `node_dim`,
    # `attention_dim` (hidden units of the MLP of each edge), `num_heads` and `num_layers` (blocks).
    bonds: Literal["scalar", "one_hot"] = "scalar"
    # `one_hot`: the noise of positions in training has a std of up to this, in Angstrom, drawn for
    # each molecule.
    position_noise: float = 0.0
    # `one_hot`: the share of molecules, drawn anew in each epoch, whose atom types the network does
    # not see in training, and finds. 0: it cannot find types.
    hidden_types: float = 0.0
    # Fourier features of the time, an even number. 0: the network does not see the time.
    time_dim: int = 0
    # Std of the data that noised atom types and bond types are scaled back to. null: no scaling.
    input_spread: float | None = None
    # Width of the atom features.
    node_dim: int = 16
    # Width of the attention between atoms.
    attention_dim: int = 16
    # Attention heads; their number divides `attention_dim` and `node_dim`.
    num_heads: int = 4
    # Layers of the node network and of the edge network.
    num_layers: int = 4
    # Linear layers of each MLP over pairs of atoms.
    num_linears: int = 3
    # Adjacency channels between the layers of the edge network.
    hidden_channels: int = 8
    # Adjacency channels after the last layer of the edge network.
    final_channels: int = 4
    # The network's output is the noise times the std of the SDE, as published. false: the noise.
    divide_by_std: bool = True


@dataclass
class ModelConfig:
    """The two encoders and the two score networks."""

    # Width of the atoms' representations in both encoders.
    hidden_dim: int = 300
    # Which 3D encoder the model has.
    encoder_3d: Literal["schnet", "painn"] = "schnet"
    gin: GINConfig = field(default_factory=GINConfig)
    schnet: SchNetConfig = field(default_factory=SchNetConfig)
    painn: PaiNNConfig = field(default_factory=PaiNNConfig)
    conformer: ConformerScoreConfig = field(default_factory=ConformerScoreConfig)
    topology: TopologyScoreConfig = field(default_factory=TopologyScoreConfig)


@dataclass
class LossConfig:
    """The three objectives and their coefficients."""

    # Coefficient of the contrastive loss.
    coefficient_contrastive: float = 1.0
    # Coefficient of the denoising loss of positions.
    coefficient_2d_to_3d: float = 1.0
    # Coefficient of the denoising loss of atom types and adjacency.
    coefficient_3d_to_2d: float = 1.0
    # Coefficient of an objective of the 3D encoder that is not MoleculeSDE's: to find small
    # displacements of the atoms (Zaidi et al. 2023).
    coefficient_displacements: float = 0.0
    # Their standard deviation, A.
    displacement_std: float = 0.05
    # Contrastive objective: EBM-NCE over atoms, EBM-NCE over molecules, or InfoNCE over molecules.
    contrastive: Literal["node_ebm_nce", "graph_ebm_nce", "info_nce"] = "node_ebm_nce"
    # Number that the contrastive logits are divided by.
    temperature: float = 0.1
    # Negatives of each molecule in `graph_ebm_nce`.
    num_shifts: int = 1
    # Where negatives come from: the molecule's own slot, or the slots of all ranks, gradients
    # included. With `ranks` the results depend on the number of ranks.
    negatives: Literal["slot", "ranks"] = "slot"
    # `node_ebm_nce` never draws an atom as its own negative.
    exclude_true_pairs: bool = False
    # Power p: the denoising losses are weighted by std^p.
    anneal_power: float = 0.0
    # Which times are antithetic (k and N - 1 - k): those of two halves of a slot, as published, or
    # those of a molecule in two successive epochs.
    times: Literal["antithetic_in_slot", "antithetic_over_epochs"] = "antithetic_in_slot"
    # Points N of the grid that training times are drawn from.
    num_timesteps: int = 1000


@dataclass
class OptimConfig:
    """Adam, with a learning-rate scale for each part of the model, and the schedule."""

    # Learning rate after the warm-up, before the scales below.
    lr: float = 1e-4
    # Learning-rate scale of the 2D encoder.
    scale_encoder_2d: float = 1.0
    # Learning-rate scale of the 3D encoder.
    scale_encoder_3d: float = 0.1
    # Learning-rate scale of the score network of positions.
    scale_2d_to_3d: float = 1.0
    # Learning-rate scale of the score network of atom types and adjacency.
    scale_3d_to_2d: float = 0.1
    # Adam's decay of the mean gradient.
    beta1: float = 0.9
    # Adam's decay of the mean squared gradient.
    beta2: float = 0.999
    # L2 penalty that Adam adds to the gradient.
    weight_decay: float = 0.0
    # Learning rate after the warm-up: constant (published), or falling to zero at the last step.
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    # Optimizer steps in which the learning rate rises linearly.
    warmup_steps: int = 0


@dataclass
class RunConfig:
    """How long a run lasts, what it writes and when, and how it guards itself."""

    # Seed of weights, noise, times, negatives and the order of the data.
    seed: int = 0
    # Passes over the training molecules.
    epochs: float = 50.0
    # Optimizer steps of the whole run; overrides `run.epochs`.
    steps: int | None = None
    # Optimizer steps between two rows of metrics.
    log_every: int = 10
    # Optimizer steps between two checkpoints.
    save_every: int = 1000
    # Optimizer steps between two validations.
    validate_every: int = 500
    # Newest checkpoints that are kept.
    keep_last: int = 3
    # Checkpoints of steps that are multiples of this are kept as well.
    keep_every: int | None = None
    # Seconds after which a rank that the others wait for counts as dead.
    comm_timeout: float = 600.0
    # Steps skipped in a row, mostly for losses or gradients that are not finite, after which the
    # run fails.
    max_skipped_steps: int = 5
    # Skip steps whose loss is more than this many times its moving average. 0 is off.
    spike_factor: float = 0.0
    # Decay of an exponential moving average of the weights, which validation and `best/` use.
    # BatchNorm's running statistics stay those of the last weights. 0 is off.
    ema_decay: float = 0.0
    # Keep only the inputs of layers for the backward pass and compute the rest again: less memory,
    # more time.
    activation_checkpointing: bool = False
    # Precision of matrix products of float32 tensors: `highest` is float32; `high` takes TF32 on
    # GPUs and float32 on CPUs; `medium` also takes bfloat16 on CPUs with AMX or AVX512_BF16.
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    # Who gets scalars, texts and pictures besides TensorBoard: Weights & Biases or MLflow, of which
    # `pip install 'msde[trackers]'` installs both.
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    # Compile the losses by torch.compile, which joins small operations in fewer kernels; batches
    # are padded to sizes that repeat. Compiling a size took 40 to 100 s on a CPU; ranks wait half
    # an hour for each other. It is meant for GPUs, where it has not run yet; on a CPU with one
    # thread a step takes as long as without. Needs ZeRO 0, 1 or 2.
    compile: bool = False
    # On a GPU, record the operations of a step as a CUDA graph and replay it; batches are padded to
    # sizes that repeat. Needs ZeRO 0, 1 or 2. It has not run on a GPU yet.
    cuda_graphs: bool = False

    @property
    def repeating(self) -> list[str]:
        """The keys that are on and for which batches are padded to sizes that repeat."""
        return [name for name in ("cuda_graphs", "compile") if getattr(self, name)]


@dataclass
class Config:
    """Everything that decides a run, besides the data and DeepSpeed's JSON."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Former names of keys. Configurations that were stored with them can still be loaded.
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
