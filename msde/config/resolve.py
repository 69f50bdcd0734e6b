"""The configuration: a tree of dataclasses, presets, a JSON file and key=value overrides.

DeepSpeed's own JSON owns slots per step, precision, ZeRO, offload and clipping; this tree owns the
rest, and nothing stands in both. Values that follow from others are computed, not configured.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msde.config.presets import PRESETS
from msde.errors import MsdeError, Problems, insist


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
    max_left_out: int = 5  # steps in a row with losses or gradients that are not finite
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


def make_config(
    preset: str = "base",
    file: Path | None = None,
    overrides: Iterable[str] = (),
    over: dict[str, Any] | None = None,
) -> Config:
    """Build a configuration: a preset, then a JSON file, then key=value overrides.

    Args:
        over: values that lie over the preset and under the file.

    Raises:
        MsdeError: an unknown preset or key (the nearest one is named), or a value of a wrong type.
    """
    if preset not in PRESETS:
        raise MsdeError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    config, problems = Config(), Problems()
    for layer in [*PRESETS[preset], over or {}]:
        _apply(config, layer, f"preset {preset}")
    with problems.noted():
        if file is not None:
            _apply(config, read_json(file), str(file))
    for override in overrides:
        with problems.noted():
            key, equals, text = override.partition("=")
            if not equals:
                raise MsdeError(f"override {override!r} is not of the form key=value")
            _set(config, key, _parse(text), "command line")
    with problems.noted():
        _check(config)
    problems.tell()
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], where: str = "stored configuration") -> Config:
    """Rebuild a configuration that `to_dict` wrote."""
    config = Config()
    _apply(config, values, where)
    _check(config)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; whatever is wrong with the file is one line."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise MsdeError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MsdeError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise MsdeError(f"{path} holds {type(values).__name__}, expected a JSON object")
    return values


def nearest(key: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a misspelt key, or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # perhaps only the last part of a dotted key is right
        close = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


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


def _apply(config: Config, values: dict[str, Any], where: str, prefix: str = "") -> None:
    problems = Problems()
    for key, value in values.items():
        with problems.noted():
            if isinstance(value, dict):
                _apply(config, value, where, f"{prefix}{key}.")
            else:
                _set(config, f"{prefix}{key}", value, where)
    problems.tell()


def _set(config: Config, key: str, value: Any, where: str) -> None:
    if key not in leaves(config):
        raise MsdeError(f"{where}: unknown key {key!r}{nearest(key, leaves(config))}")
    node: Any = config
    *path, name = key.split(".")
    for part in path:
        node = getattr(node, part)
    expected = typing.get_type_hints(type(node))[name]
    setattr(node, name, _convert(value, expected, f"{where}: {key}"))


def _parse(text: str) -> Any:
    """Read a value from the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(value: Any, expected: Any, where: str) -> Any:
    options = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        if value not in options:
            raise MsdeError(f"{where} is {value!r}, expected one of {', '.join(map(str, options))}")
        return value
    if type(None) in options:
        if value is None:
            return None
        (expected,) = (option for option in options if option is not type(None))
    if expected is float and type(value) in (int, float):
        return float(value)
    if expected is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not expected:
        raise MsdeError(f"{where} is {value!r}, expected {expected.__name__}")
    return value


# Values that are shares, and those that must be positive where they are given.
SHARES = (
    "model.gin.dropout", "model.conformer.dropout", "data.validation_fraction",
    "data.masking_ratio", "run.ema_decay", "optim.beta1", "optim.beta2",
)  # fmt: skip
POSITIVE = (
    "loss.num_timesteps", "model.schnet.cutoff", "loss.temperature", "loss.num_shifts",
    "model.painn.cutoff", "data.atoms_per_slot", "data.max_validation_molecules", "run.steps",
    "run.epochs", "run.log_every", "run.save_every", "run.validate_every", "run.keep_last",
    "run.keep_every", "run.max_left_out", "optim.lr",
)  # fmt: skip


def _check(config: Config) -> None:
    """Check what must hold between values; an MsdeError names the rules that are broken."""
    rules: dict[str, bool] = {}
    for key, size in leaves(config.model, "model.").items():
        if type(size) is int:
            least = 0 if key.endswith("time_dim") else 1
            rules[f"{key} must be at least {least}"] = size >= least
    insist(rules)  # before they are divided by
    values = leaves(config)
    rules |= {f"{key} must be in [0, 1)": 0 <= values[key] < 1 for key in SHARES}
    rules |= {f"{key} must be positive": values[key] is None or values[key] > 0 for key in POSITIVE}
    rules |= _data_rules(config.data) | _run_rules(config.run, config.optim)
    rules |= {
        "model.schnet.num_gaussians must be at least 2": config.model.schnet.num_gaussians >= 2,
        "model.painn.num_gaussians must be at least 2": config.model.painn.num_gaussians >= 2,
        "run.cuda_graphs works without run.activation_checkpointing, data.atoms_per_slot and "
        "loss.negatives=ranks only": not config.run.cuda_graphs
        or not (
            config.run.activation_checkpointing
            or config.data.atoms_per_slot
            or config.loss.negatives == "ranks"
        ),
        "model.conformer.num_heads must divide model.conformer.hidden_dim": (
            config.model.conformer.hidden_dim % config.model.conformer.num_heads == 0
        ),
        "model.topology.num_heads must divide model.topology.attention_dim and node_dim": (
            config.model.topology.attention_dim % config.model.topology.num_heads == 0
            and config.model.topology.node_dim % config.model.topology.num_heads == 0
        ),
    }
    for name, score in (("conformer", config.model.conformer), ("topology", config.model.topology)):
        sde, spread = score.sde, score.input_spread
        rules |= {
            f"model.{name}.sde needs 0 < sigma_min < sigma_max": 0 < sde.sigma_min < sde.sigma_max,
            f"model.{name}.sde needs 0 < beta_min < beta_max": 0 < sde.beta_min < sde.beta_max,
            f"model.{name}.sde.scale must be positive": sde.scale > 0,
            f"model.{name}.input_spread must be positive": spread is None or spread > 0,
            f"model.{name}.time_dim must be even": score.time_dim % 2 == 0,
        }
    insist(rules)


def _data_rules(data: DataConfig) -> dict[str, bool]:
    return {
        "data.molecules_per_step must be at least 2": data.molecules_per_step >= 2,
        "data.molecules_per_slot must be at least 2": (data.molecules_per_slot or 2) >= 2,
        "data.molecules_per_slot and data.atoms_per_slot cannot both be given": (
            data.molecules_per_slot is None or data.atoms_per_slot is None
        ),
        "data.workers must not be negative": data.workers >= 0,
        "data.resident and data.masking_ratio cannot be used together": (
            not data.resident or not data.masking_ratio
        ),
    }


def _run_rules(run: RunConfig, optim: OptimConfig) -> dict[str, bool]:
    return {
        "run.seed must be in [0, 2^64)": 0 <= run.seed < 2**64,
        "run.comm_timeout must be at least 5": run.comm_timeout >= 5,
        "run.spike_factor must be 0 or more than 1": not run.spike_factor or run.spike_factor > 1,
        "optim.warmup_steps must not be negative": optim.warmup_steps >= 0,
        "optim.weight_decay must not be negative": optim.weight_decay >= 0,
    }
