"""What a run will do, worked out before any engine is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

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
