"""Norms of gradients and updates by part of the model, from the state that Adam keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CHUNK = 1 << 22  # values that are looked at together, to keep the memory small


@torch.no_grad()
def norms_by_part(engine: DeepSpeedEngine) -> dict[str, float]:
    """Return scalars of each parameter group; every rank must call it. It waits for the device.

    `optim/gradient_norm/PART` is the root of Adam's moving mean of the squared gradient, summed
    over the part's weights. `optim/update_norm/PART` is the norm of the last update, and
    `optim/update_ratio/PART` its share of the norm of the weights.
    """
    parts = [group["name"] for group in engine.optimizer.param_groups]
    sums = torch.zeros(len(parts), 3, dtype=torch.float64, device=engine.device)
    for number, group, weights, state in _own_state(engine):
        sums[number] += _squares(group, weights, state).to(sums.device)
    if engine.zero_optimization():  # each rank holds its own part of the state
        dist.all_reduce(sums)
    found = {}
    for part, squares in zip(parts, sums.tolist(), strict=True):
        gradient, update, weight = map(math.sqrt, squares)
        if weight:
            found[f"optim/gradient_norm/{part}"] = gradient
            found[f"optim/update_norm/{part}"] = update
            found[f"optim/update_ratio/{part}"] = update / weight
    return found


def _own_state(
    engine: DeepSpeedEngine,
) -> Iterator[tuple[int, dict[str, Any], Tensor, dict[str, Any]]]:
    """Yield group number, group, weights and Adam's state of the tensors that this rank updates."""
    outer = engine.optimizer
    inner = getattr(outer, "optimizer", outer)
    if engine.zero_optimization_partition_weights():  # of ZeRO 3, whose groups are empty meanwhile
        flat = outer.fp32_partitioned_groups_flat
        tensors = [(outer.sub_group_to_group_id[i], tensor) for i, tensor in enumerate(flat)]
    else:
        groups = enumerate(inner.param_groups)
        tensors = [(number, tensor) for number, group in groups for tensor in group["params"]]
    for number, tensor in tensors:
        yield number, inner.param_groups[number], tensor, inner.state.get(tensor, {})


def _squares(group: dict[str, Any], weights: Tensor, state: dict[str, Any]) -> Tensor:
    """Return the squared norms of gradient, update and weights of one tensor, (3,) float64."""
    if not state or not state["step"]:  # no part in the loss, or no step taken yet
        size = weights.detach().double().square().sum()
        return torch.stack([torch.zeros_like(size), torch.zeros_like(size), size])
    (beta1, beta2), lr, step = group["betas"], group["lr"], float(state["step"])
    tensors = (state["exp_avg"], state["exp_avg_sq"], weights)
    total = torch.zeros(3, dtype=torch.float64, device=weights.device)
    for chunks in zip(*(t.detach().flatten().split(CHUNK) for t in tensors), strict=True):
        mean, square, own = chunks
        square = square / (1 - beta2**step)
        update = mean / (square.sqrt() + group["eps"]) * (lr / (1 - beta1**step))
        norms = [square.sum(), update.square().sum(), own.square().sum()]
        total += torch.stack(norms).double()
    return total
