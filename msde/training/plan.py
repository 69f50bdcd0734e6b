"""The plan of a run: its data, slots and steps, known before any engine is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msde.config import Config
from msde.data.manifest import root_and_weight
from msde.data.mixture import Mixture
from msde.data.partition import Partition, SlotSize, held_out_molecules
from msde.data.shards import ShardDataset
from msde.data.stream import ShardStream
from msde.errors import MsdeError


@dataclass(frozen=True)
class RunPlan:
    """What follows from the configuration, the data and the number of ranks."""

    stream: ShardStream
    validation: np.ndarray  # (num_held_out,) numbers of the held-out molecules
    steps_per_epoch: int  # estimated where an epoch has several windows
    total_steps: int
    warmup_steps: int

    @property
    def molecules_per_slot(self) -> float:
        """Average number of molecules in a slot."""
        partition = self.stream.partition
        trained = self.stream.data.molecules_per_epoch * (1 - partition.validation_fraction)
        return trained / (self.steps_per_epoch * partition.slots_per_step)

    def describe(self) -> str:
        """Return a description of the run, in lines for people."""
        data, partition = self.stream.data, self.stream.partition
        lines = []
        for source, weight in zip(data.sources, data.weights, strict=True):
            share = "" if weight == 1 else f", a share of {weight:g} in each epoch"
            manifest = source.manifest
            lines.append(
                f"data: {source.root}, {len(source)} molecules in {len(manifest['shards'])} "
                f"shards, {manifest['atoms'] / len(source):.1f} atoms each on average, "
                f"{manifest['max_atoms']} at most{share}"
            )
        slots, size = partition.slots_per_step, partition.slot_size
        per_slot = self.molecules_per_slot
        most = f"{size.molecules} molecules" if size.molecules else f"{size.atoms} atoms"
        if self.warmup_steps >= self.total_steps:
            lines.append(
                f"warm-up: optim.warmup_steps is {self.warmup_steps}, the run has "
                f"{self.total_steps} steps: the learning rate does not reach optim.lr"
            )
        world_sizes = [w for w in range(1, slots + 1) if slots % w == 0]
        return "\n".join(
            [
                *lines,
                f"split: {partition.validation_fraction:.1%} held out, {len(self.validation)} of "
                "them validated on",
                f"step: {slots} slots of at most {most}, {per_slot:.1f} on average = "
                f"{slots * per_slot:.0f} molecules",
                f"ranks: {', '.join(map(str, world_sizes))} can share these slots",
                f"steps: about {self.steps_per_epoch} an epoch, {self.total_steps} in all",
            ]
        )


def slot_size(config: Config, slots_per_step: int) -> SlotSize:
    """Return the size of a slot.

    Raises:
        MsdeError: the molecules of a step cannot be shared evenly by its slots.
    """
    if config.data.atoms_per_slot is not None:
        return SlotSize(atoms=config.data.atoms_per_slot)
    if config.data.molecules_per_slot is not None:
        return SlotSize(molecules=config.data.molecules_per_slot)
    share, rest = divmod(config.data.molecules_per_step, slots_per_step)
    if rest or share < 2:
        raise MsdeError(
            f"data.molecules_per_step is {config.data.molecules_per_step}, which "
            f"{slots_per_step} slots (train_batch_size) cannot share evenly with two or more each; "
            f"use a multiple of {slots_per_step}, or set data.molecules_per_slot"
        )
    return SlotSize(molecules=share)


def open_data(data: Sequence[str | Path] | str | Path, stage_dir: str | None = None) -> Mixture:
    """Open the data of a run: folders or URLs, each with =WEIGHT behind it if weights differ.

    Raises:
        MsdeError: one of them cannot be used.
    """
    items = [data] if isinstance(data, (str, Path)) else data
    roots, weights = zip(*map(root_and_weight, items), strict=True)
    stage = Path(stage_dir) if stage_dir else None
    return Mixture([ShardDataset(root, stage) for root in roots], weights)


def make_plan(
    config: Config,
    data: Sequence[str | Path] | str | Path,
    slots_per_step: int,
    rank: int = 0,
    world_size: int = 1,
) -> RunPlan:
    """Open the data and plan the run.

    Raises:
        MsdeError: the data cannot be used, or do not fit the batch sizes.
    """
    mixture = open_data(data, config.data.stage_dir)
    for source in mixture.sources:
        if source.manifest["no_geometry"]:
            raise MsdeError(
                f"{source.root}: {source.manifest['no_geometry']} molecules have no geometry, "
                "which pretraining needs; convert with --conformers 1 or more"
            )
    fraction = config.data.validation_fraction
    partition = Partition(
        mixture,
        seed=config.run.seed,
        slots_per_step=slots_per_step,
        slot_size=slot_size(config, slots_per_step),
        validation_fraction=fraction,
    )
    stream = ShardStream(
        partition,
        rank=rank,
        world_size=world_size,
        workers=config.data.workers,
        masking_ratio=config.data.masking_ratio,
        hydrogen_dropout=config.data.hydrogen_dropout,
        padded=bool(config.run.repeating),
    )
    steps = partition.steps_per_epoch()
    total = config.run.steps or math.ceil(config.run.epochs * steps)
    at_most = config.data.max_validation_molecules
    held_out = held_out_molecules(mixture, fraction, at_most)
    return RunPlan(stream, held_out, steps, total, config.optim.warmup_steps)
