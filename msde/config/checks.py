"""The rules that values of a configuration keep: ranges of single values, and relations."""

from __future__ import annotations

from collections.abc import Callable

from msde.config.schema import Config, LossConfig, leaves
from msde.errors import require

Range = tuple[str, Callable[[float], bool]]  # in words, and whether a value is in it
SHARE: Range = ("in [0, 1)", lambda value: 0 <= value < 1)
POSITIVE: Range = ("positive", lambda value: value > 0)
COEFFICIENT = "coefficient_"  # with which the names of all in `loss.` begin


def _at_least(least: int) -> Range:
    return f"at least {least}", lambda value: value >= least


# Of whole numbers in `model.` that are not listed here, each is at least one.
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        (
            "model.gin.dropout", "model.conformer.dropout", "data.validation_fraction",
            "data.masking_ratio", "run.ema_decay", "optim.beta1", "optim.beta2",
        ),
        SHARE,
    ),
    **dict.fromkeys(
        (
            "loss.num_timesteps", "loss.temperature", "loss.num_shifts", "model.schnet.cutoff",
            "model.painn.cutoff", "model.conformer.input_spread", "model.topology.input_spread",
            "model.conformer.sde.scale", "model.topology.sde.scale", "data.atoms_per_slot",
            "data.max_validation_molecules", "run.steps", "run.log_every",
            "run.save_every", "run.validate_every", "run.keep_last", "run.keep_every",
            "run.max_skipped_steps", "optim.lr", "loss.displacement_std", "run.epochs",
        ),
        POSITIVE,
    ),
    "data.hydrogen_dropout": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "data.molecules_per_step": _at_least(2),
    "data.molecules_per_slot": _at_least(2),
    "data.workers": _at_least(0),
    "model.schnet.num_gaussians": _at_least(2),
    "model.painn.num_gaussians": _at_least(2),
    "model.conformer.time_dim": _at_least(0),
    "model.topology.time_dim": _at_least(0),
    "model.topology.position_noise": ("0 or more", lambda value: value >= 0),
    "model.topology.hidden_types": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "optim.warmup_steps": _at_least(0),
    "optim.weight_decay": _at_least(0),
    "optim.scale_encoder_2d": _at_least(0),
    "optim.scale_encoder_3d": _at_least(0),
    "optim.scale_2d_to_3d": _at_least(0),
    "optim.scale_3d_to_2d": _at_least(0),
    **{f"loss.{name}": _at_least(0) for name in vars(LossConfig()) if name.startswith(COEFFICIENT)},
    "run.comm_timeout": _at_least(5),
    "run.seed": ("in [0, 2^64)", lambda value: 0 <= value < 2**64),
    "run.spike_factor": ("0 or more than 1", lambda value: value == 0 or value > 1),
}  # fmt: skip


def range_of(key: str, value: object) -> Range | None:
    """Return the range of a key that has this value or default, if its values have one."""
    if key not in RANGES and key.startswith("model.") and type(value) is int:
        return _at_least(1)
    return RANGES.get(key)


def check(config: Config) -> None:
    """Check every value and how values fit together.

    Raises:
        MsdeError: the rules that are broken.
    """
    rules = {}
    for key, value in leaves(config).items():
        if (allowed := range_of(key, value)) and value is not None:
            rules[f"{key} must be {allowed[0]}"] = allowed[1](value)
    require(rules)
    require(_relations(config))


def _relations(config: Config) -> dict[str, bool]:
    """Return the rules between values, and whether they hold; every value is in its range."""
    data, model, run = config.data, config.model, config.run
    rules = {
        "one of loss.coefficient_* must be positive, or there is nothing to learn": any(
            value for name, value in vars(config.loss).items() if name.startswith(COEFFICIENT)
        ),
        "data.molecules_per_slot and data.atoms_per_slot cannot both be given": None
        in (data.molecules_per_slot, data.atoms_per_slot),
        "data.resident and data.masking_ratio cannot be used together": (
            not data.resident or not data.masking_ratio
        ),
        "data.resident and data.hydrogen_dropout cannot be used together": (
            not data.resident or not data.hydrogen_dropout
        ),
        "model.conformer.num_heads must divide model.conformer.hidden_dim": (
            model.conformer.hidden_dim % model.conformer.num_heads == 0
        ),
        "model.conformer.edges=all_pairs needs positions=centred, time_dim above 0, input_spread "
        "and dropout=0": model.conformer.edges != "all_pairs"
        or (
            model.conformer.positions == "centred"
            and model.conformer.time_dim > 0
            and model.conformer.input_spread is not None
            and model.conformer.dropout == 0
        ),
        "model.topology.bonds=one_hot needs time_dim above 0": model.topology.bonds != "one_hot"
        or model.topology.time_dim > 0,
        "model.topology.position_noise needs bonds=one_hot": not model.topology.position_noise
        or model.topology.bonds == "one_hot",
        "model.topology.hidden_types needs bonds=one_hot": not model.topology.hidden_types
        or model.topology.bonds == "one_hot",
        "model.topology.num_heads must divide model.topology.attention_dim and node_dim": (
            model.topology.attention_dim % model.topology.num_heads == 0
            and model.topology.node_dim % model.topology.num_heads == 0
        ),
    }
    for name in run.repeating:
        rules |= {
            f"run.{name} works without run.activation_checkpointing, data.atoms_per_slot and "
            "loss.negatives=ranks only": not (
                run.activation_checkpointing
                or data.atoms_per_slot
                or config.loss.negatives == "ranks"
            ),
            f"run.{name} does not work with model.conformer.edges=all_pairs": (
                model.conformer.edges != "all_pairs"
            ),
            f"run.{name} does not work with model.topology.bonds=one_hot": (
                model.topology.bonds != "one_hot"
            ),
        }
    for name, score in (("conformer", model.conformer), ("topology", model.topology)):
        sde = score.sde
        rules |= {
            f"model.{name}.sde needs 0 < sigma_min < sigma_max": 0 < sde.sigma_min < sde.sigma_max,
            f"model.{name}.sde needs 0 < beta_min < beta_max": 0 < sde.beta_min < sde.beta_max,
            f"model.{name}.time_dim must be even": score.time_dim % 2 == 0,
        }
    return rules
