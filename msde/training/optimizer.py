"""The optimizer's parameter groups, the hyper-parameters of each step, and skipped steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from msde.config import OptimConfig
from msde.model import MoleculeSDE


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


class SkippingAdam(torch.optim.Adam):
    """Adam that skips a step with a gradient that is not finite.

    It says so in `overflow`, which DeepSpeed's engine reads to count skipped steps. The optimizers
    of ZeRO do the same; this one is for runs without ZeRO, where every rank holds the same reduced
    gradients and decides alike.
    """

    overflow = False

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step, or none if any gradient is not finite."""
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm(gradients))
        self.overflow = not bool(norms.isfinite().all())
        return None if self.overflow else super().step(closure)


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
