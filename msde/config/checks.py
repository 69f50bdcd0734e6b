"""What must hold between the values of a configuration."""

from __future__ import annotations

from msde.config.schema import Config, DataConfig, OptimConfig, RunConfig, leaves
from msde.errors import require

# Values that are shares, and those that must be positive where they are given.
SHARES = (
    "model.gin.dropout", "model.conformer.dropout", "data.validation_fraction",
    "data.masking_ratio", "run.ema_decay", "optim.beta1", "optim.beta2",
)  # fmt: skip
POSITIVE = (
    "loss.num_timesteps", "model.schnet.cutoff", "loss.temperature", "loss.num_shifts",
    "model.painn.cutoff", "data.atoms_per_slot", "data.max_validation_molecules", "run.steps",
    "run.epochs", "run.log_every", "run.save_every", "run.validate_every", "run.keep_last",
    "run.keep_every", "run.max_skipped_steps", "optim.lr",
)  # fmt: skip


def check(config: Config) -> None:
    """Check what must hold between values; an MsdeError names the rules that are broken."""
    rules: dict[str, bool] = {}
    for key, size in leaves(config.model, "model.").items():
        if type(size) is int:
            least = 0 if key.endswith("time_dim") else 1
            rules[f"{key} must be at least {least}"] = size >= least
    require(rules)  # before they are divided by
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
    require(rules)


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
