"""The optimizer's parameter groups, the hyper-parameters of each step, and skipped steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msde.config import OptimConfig
from msde.config.deepspeed import zero_stage
from msde.model import MoleculeSDE

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def parameter_groups(model: MoleculeSDE) -> list[dict]:
    """Return the four optimizer groups, each with its `name` and learning rate `lr`."""
    optim = model.config.optim
    encoder_2d = nn.ModuleList([m for m in (model.encoder_2d, model.projection_2d) if m])
    encoder_3d = nn.ModuleList(
        [m for m in (model.encoder_3d, model.displacements) if m is not None]
    )
    parts = {
        "encoder_2d": (encoder_2d, optim.scale_encoder_2d),
        "encoder_3d": (encoder_3d, optim.scale_encoder_3d),
        "score_2d_to_3d": (model.score_2d_to_3d, optim.scale_2d_to_3d),
        "score_3d_to_2d": (model.score_3d_to_2d, optim.scale_3d_to_2d),
    }
    return [
        {
            "name": name,
            "params": [p for p in part.parameters() if p.requires_grad],
            "lr": optim.lr * scale,
        }
        for name, (part, scale) in parts.items()
    ]


def decides_to_skip(ds_config: dict[str, Any]) -> bool:
    """Return whether `GradientCheck` decides which steps are skipped, or else DeepSpeed does.

    DeepSpeed's decision needs a number from the device, for which the host waits. ZeRO 3, clipped
    gradients under ZeRO 1 and 2, and an optimizer on the host are left to it.
    """
    stage = zero_stage(ds_config)
    offloads = "offload_optimizer" in ds_config.get("zero_optimization", {})
    return stage == 0 or (stage < 3 and not offloads and not ds_config["gradient_clipping"])


class GradientCheck:
    """Makes Adam skip steps with a gradient that is not finite, without a wait of the host."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        """Check the engine's gradients."""
        self._engine = engine
        self._is_ours = decides_to_skip(engine.config)

    def before_step(self) -> None:
        """Tell Adam whether to skip the step; called between the last backward pass and it."""
        self._skipped_before = self._engine.skipped_steps
        if self._is_ours:
            norm = torch.stack(torch._foreach_norm(self._gradients())).sum()
            self._found = (norm - norm).ne(0).float()  # NaN minus itself, and infinity, are NaN
            if self._engine.zero_optimization():  # each rank has seen its own part
                dist.all_reduce(self._found, dist.ReduceOp.MAX)
            # As torch.amp.GradScaler does: the fused kernels then leave weights and state alone.
            outer = self._engine.optimizer
            getattr(outer, "optimizer", outer).found_inf = self._found

    def skipped(self, device: torch.device) -> Tensor:
        """Return whether the step just made was skipped, () bool."""
        if self._is_ours:
            return self._found > 0
        by_deepspeed = self._engine.skipped_steps > self._skipped_before
        return torch.full((), by_deepspeed, dtype=torch.bool, device=device)

    def count(self) -> None:
        """Note a skipped step in the engine's count, where the engine does not know of it."""
        self._engine.skipped_steps += self._is_ours

    def _gradients(self) -> list[Tensor]:
        """Return the reduced gradients that this rank's optimizer uses."""
        if self._engine.zero_optimization():
            groups = self._engine.optimizer.averaged_gradients.values()
            return [gradient for group in groups for gradient in group]
        return [p.grad for p in self._engine.module.parameters() if p.grad is not None]


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Return the factor of the learning rates in a step, counted from 0; a pure function."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if optim.schedule == "linear":
        return max(0.0, 1 - progress)
    return 1.0


def set_hyper_parameters(
    optimizer: torch.optim.Optimizer, factor: float, base_rates: list[float], optim: OptimConfig
) -> None:
    """Set the hyper-parameters of the optimizer's groups, with learning rates times `factor`.

    Called before every step: there is no state of a scheduler to save or lose, and a resumed run
    has its own configuration, not the checkpoint's.
    """
    for group, lr in zip(optimizer.param_groups, base_rates, strict=True):
        group["lr"] = lr * factor
        group["betas"] = (optim.beta1, optim.beta2)
        group["weight_decay"] = optim.weight_decay
        group["fused"] = True  # checkpoints of earlier releases say no
