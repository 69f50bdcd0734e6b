"""From shards to batches: the plan of an epoch and the stream that follows it.

The unit is the slot, a fixed list of molecules that one forward pass sees. An optimizer step is a
fixed number of slots, dealt to whatever ranks there are. Which molecules a slot holds depends on
the data set, the seed, the epoch and the number of slots in a step, never on the world size; so
BatchNorm, negatives and noise do not depend on it either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from msde import codec, philox
from msde.batch import MoleculeBatch
from msde.errors import MsdeError
from msde.masking import mask_columns
from msde.philox import Key, Stream
from msde.shards import ShardDataset

WINDOW_BLOCKS = 64  # blocks shuffled together and held in memory: about 32 MB
SPLIT_KEY = Key(seed=0, epoch=0)  # the split does not change with the seed of the run


@dataclass(frozen=True)
class EpochPlan:
    """The molecules of one epoch in order, cut into steps of `slots_per_step` slots each."""

    order: np.ndarray  # (num_molecules,) int64, positions in the data set
    slot_ptr: np.ndarray  # (num_steps * slots_per_step + 1,) int64, offsets into `order`
    slots_per_step: int

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps in the epoch."""
        return (len(self.slot_ptr) - 1) // self.slots_per_step

    def slot(self, step: int, slot: int) -> np.ndarray:
        """Return the molecules of one slot of one step."""
        s = step * self.slots_per_step + slot
        return self.order[self.slot_ptr[s] : self.slot_ptr[s + 1]]

    def molecules_in_step(self, step: int) -> int:
        """Return how many molecules the slots of one step hold together."""
        first = step * self.slots_per_step
        return int(self.slot_ptr[first + self.slots_per_step] - self.slot_ptr[first])


def split_by_uid(uid: np.ndarray, validation_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split molecules into (training, validation) positions by a hash of their ids."""
    hashed = philox.words(SPLIT_KEY, Stream.SPLIT, philox.signed(uid))[:, 0].numpy()
    held_out = hashed < validation_fraction * 2**32
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def epoch_order(dataset: ShardDataset, members: np.ndarray, key: Key) -> np.ndarray:
    """Shuffle `members`: blocks at random into windows, molecules at random inside a window.

    So an epoch reads every block once, and memory is bounded by the window, not by the data set.
    """
    blocks = torch.arange(dataset.num_blocks)
    block_rank = _argsort(philox.words(key, Stream.SHUFFLE_BLOCKS, blocks, 0, 2)).argsort()
    window = block_rank[dataset.block[members]] // WINDOW_BLOCKS  # (num_members,)
    drawn = philox.words(key, Stream.SHUFFLE_MOLECULES, philox.signed(dataset.uid[members]), 0, 2)
    within = _argsort(drawn)
    return members[within[np.argsort(window[within], kind="stable")]]


def plan_epoch(order: np.ndarray, slots_per_step: int, molecules_per_slot: int) -> EpochPlan:
    """Cut an epoch's molecules into steps; nothing is dropped and no slot is left almost empty.

    Full steps come first. What remains makes a last, shorter step, shared evenly by its slots; if
    that would leave slots with fewer than two molecules, the step before takes them in.

    Raises:
        MsdeError: there are fewer than two molecules for each slot of a step.
    """
    per_step = slots_per_step * molecules_per_slot
    if len(order) < 2 * slots_per_step:
        raise MsdeError(
            f"{len(order)} molecules cannot fill {slots_per_step} slots with two or more each; "
            f"use at most {len(order) // 2} slots a step (train_batch_size) or more data"
        )
    full, rest = divmod(len(order), per_step)
    sizes = [molecules_per_slot] * (full * slots_per_step)
    if rest and rest < 2 * slots_per_step and full:
        rest += per_step
        sizes = sizes[:-slots_per_step]
    if rest:
        share, more = divmod(rest, slots_per_step)
        sizes += [share + (s < more) for s in range(slots_per_step)]
    slot_ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return EpochPlan(order, slot_ptr, slots_per_step)


def _argsort(drawn: torch.Tensor) -> np.ndarray:
    """Order rows of two 32-bit words as 64-bit numbers; ties keep the order they came in."""
    return np.argsort(philox.sort_key(drawn).numpy(), kind="stable")


class MoleculeReader:
    """Fetch molecules by position, keeping the blocks of recent windows decoded in memory."""

    def __init__(self, dataset: ShardDataset, max_blocks: int = 2 * WINDOW_BLOCKS) -> None:
        """Start with nothing in memory; at most `max_blocks` blocks are kept."""
        self.dataset = dataset
        self.max_blocks = max_blocks
        self._blocks: dict[int, codec.MoleculeColumns] = {}

    def fetch(self, positions: np.ndarray) -> codec.MoleculeColumns:
        """Return the molecules at `positions`, grouped by block, as columns."""
        block = self.dataset.block[positions]
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        parts = [
            self._block(int(block[group[0]])).take(self.dataset.place[positions[group]])
            for group in np.split(order, cuts)
        ]
        # Back to the order that was asked for: it decides which molecules share an antithetic pair.
        return codec.concatenate(parts).take(np.argsort(order))

    def _block(self, number: int) -> codec.MoleculeColumns:
        columns = self._blocks.pop(number, None)
        if columns is None:
            columns = self.dataset.read_block(number)
        self._blocks[number] = columns  # the most recently used block is last
        if len(self._blocks) > self.max_blocks:
            del self._blocks[next(iter(self._blocks))]
        return columns


class ShardStream:
    """An endless stream of optimizer steps over a data set, for one rank of many.

    Its position is two integers, epoch and step in the epoch, equal on all ranks and valid for
    any world size that divides the slots of a step.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        members: np.ndarray,
        *,
        slots_per_step: int,
        molecules_per_slot: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        masking_ratio: float = 0.0,
    ) -> None:
        """Start at the first step of epoch 0.

        Args:
            masking_ratio: see `masking.mask_columns`.

        Raises:
            MsdeError: the world size does not divide the slots, or there are too few molecules.
        """
        if slots_per_step % world_size:
            raise MsdeError(
                f"{slots_per_step} slots a step (train_batch_size) cannot be shared evenly by "
                f"{world_size} ranks; use a multiple of {world_size}"
            )
        self.dataset = dataset
        self.members = members
        self.slots_per_step = slots_per_step
        self.molecules_per_slot = molecules_per_slot
        self.seed = seed
        self.masking_ratio = masking_ratio
        share = slots_per_step // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
        self.epoch = 0
        self.step = 0
        self._reader = MoleculeReader(dataset)
        self.plan = self._plan(0)
        self.plan_digest = self._digest()

    def _plan(self, epoch: int) -> EpochPlan:
        order = epoch_order(self.dataset, self.members, Key(self.seed, epoch))
        return plan_epoch(order, self.slots_per_step, self.molecules_per_slot)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in one epoch."""
        return self.plan.num_steps

    def __iter__(self) -> Iterator[list[MoleculeBatch]]:
        """Yield this rank's slots of each step, from the current position on, for ever.

        When a step is yielded the position is already that of the step which follows: a checkpoint
        written after a step resumes with the next one.
        """
        while True:
            slots = [self.read_slot(self.step, slot) for slot in self.own_slots]
            self.step += 1
            if self.step == self.plan.num_steps:
                self.epoch, self.step = self.epoch + 1, 0
                self.plan = self._plan(self.epoch)
            yield slots

    def read_slot(self, step: int, slot: int) -> MoleculeBatch:
        """Read one slot of the current epoch's plan as a batch."""
        positions = self.plan.slot(step, slot)
        key = Key(self.seed, self.epoch)
        columns = mask_columns(self._reader.fetch(positions), self.masking_ratio, key)
        # The mean over slots of (slot mean x weight) is the mean over the molecules of the step.
        weight = len(positions) * self.slots_per_step / self.plan.molecules_in_step(step)
        return MoleculeBatch.from_columns(
            columns,
            key=key,
            slot=step * self.slots_per_step + slot,
            weight=weight,
        )

    def state_dict(self) -> dict[str, int | str]:
        """Return the position, that of the next step, and what it is valid for."""
        return {"epoch": self.epoch, "step_in_epoch": self.step, "plan": self.plan_digest}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Move to a saved position.

        Raises:
            MsdeError: the position was saved for other data, another seed or other slots.
        """
        if state["plan"] != self.plan_digest:
            raise MsdeError(
                "the checkpoint was written with other data, another run.seed or other slots; "
                "resume with the same ones or start a new run with --resume never"
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step_in_epoch"])
        self.plan = self._plan(self.epoch)

    def _digest(self) -> str:
        """Return a digest of all that decides which molecules each slot holds."""
        sizes = (self.slots_per_step, self.molecules_per_slot, WINDOW_BLOCKS)
        digest = hashlib.sha256(repr((self.dataset.digest, self.seed, *sizes)).encode())
        digest.update(self.members.tobytes())
        return digest.hexdigest()
