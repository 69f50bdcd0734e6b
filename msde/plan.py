"""What a run will do, worked out before any engine is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msde import engine_config
from msde.config import Config
from msde.shards import ShardDataset
from msde.stream import ShardStream, split_by_uid


@dataclass(frozen=True)
class RunPlan:
    """A run, worked out from the configuration, the data and the number of ranks."""

    stream: ShardStream
    validation: np.ndarray  # positions of the held-out molecules
    total_steps: int

    def describe(self) -> str:
        """Say what the run will do, in lines for people."""
        data = self.stream.dataset
        slots, per_slot = self.stream.slots_per_step, self.stream.molecules_per_slot
        return "\n".join(
            [
                f"data: {data.root}, {len(data)} molecules in {len(data.manifest['shards'])} "
                f"shards, {data.num_atoms.mean():.1f} atoms each on average, "
                f"{data.num_atoms.max()} at most",
                f"split: {len(self.stream.members)} for training, {len(self.validation)} held out",
                f"step: {slots} slots of {per_slot} molecules = {slots * per_slot} molecules",
                f"steps: {self.stream.steps_per_epoch} an epoch, {self.total_steps} in all",
            ]
        )


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
    stage = engine_config.zero_stage(ds_config)
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


def make_plan(
    config: Config, data: Path, slots_per_step: int, rank: int = 0, world_size: int = 1
) -> RunPlan:
    """Open the data and work out the run.

    Raises:
        MsdeError: the data cannot be used, or does not fit the batch sizes.
    """
    dataset = ShardDataset(data)
    training, validation = split_by_uid(dataset.uid, config.data.validation_fraction)
    # Ids are hashes, so the smallest ones are a random choice that never changes.
    by_uid = np.argsort(dataset.uid[validation])[: config.data.max_validation_molecules]
    validation = np.sort(validation[by_uid])
    per_slot = engine_config.molecules_per_slot(config, slots_per_step)
    stream = ShardStream(
        dataset,
        training,
        slots_per_step=slots_per_step,
        molecules_per_slot=per_slot,
        seed=config.run.seed,
        rank=rank,
        world_size=world_size,
        masking_ratio=config.data.masking_ratio,
    )
    total = config.run.steps or math.ceil(config.run.epochs * stream.steps_per_epoch)
    return RunPlan(stream, validation, total)
