"""The memory that the states of a model take, worked out without building it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msde.config import deepspeed


@dataclass(frozen=True)
class StateMemory:
    """What the states of a model take of each rank's memory, in bytes; activations come on top."""

    device: int
    host: int  # what is offloaded


def state_memory(num_parameters: int, world_size: int, ds_config: dict[str, Any]) -> StateMemory:
    """Return the memory of weights, gradients and Adam's state at their peak within a step.

    All are float32. As DeepSpeed keeps them (counted with its 0.19.8): ZeRO 1 to 3 hold a second,
    partitioned copy of the weights, offloaded optimizers a second copy of the gradients; ZeRO 3
    gathers up to `stage3_max_live_parameters` weights; reduction works in four buckets.
    """
    zero = ds_config.get("zero_optimization", {})
    stage = deepspeed.zero_stage(ds_config)
    if stage == 0:
        return StateMemory(device=16 * num_parameters, host=0)
    bucket = min(zero.get("reduce_bucket_size", 500_000_000), num_parameters)
    live = min(zero.get("stage3_max_live_parameters", 1_000_000_000), num_parameters)
    share = num_parameters / world_size
    gradients = 4 * (num_parameters if stage == 1 else share)
    weights = 4 * (num_parameters if stage < 3 else share)
    optimizer = 12 * share
    working = 16 * bucket + (4 * live if stage == 3 else 0)
    offloads = {k for k in ("offload_optimizer", "offload_param") if _offloaded(zero, k)}
    host = 0.0
    if "offload_optimizer" in offloads:
        host, optimizer, gradients = optimizer + gradients + 4 * share, 0.0, 0.0
    if "offload_param" in offloads:
        host, weights = host + weights, 0.0
    return StateMemory(int(weights + gradients + optimizer + working), int(host))


def _offloaded(zero: dict[str, Any], what: str) -> bool:
    return zero.get(what, {}).get("device", "none") != "none"
