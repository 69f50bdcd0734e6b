"""The partition of an epoch: a pure function of data, seed and slot size, for any number of ranks.

The blocks of an epoch are shuffled and cut into windows of equal size, give or take a block. A
window is cut into groups; each group supplies a fixed set of the slots of every step, so a rank
reads only the blocks of its own groups. Inside a group, molecules are sorted by size and dealt in
rows: each slot gets one molecule of every row, at random. So all slots of a window have the same
number of molecules, give or take one, and their numbers of atoms differ by less than the largest
molecule has.

No window depends on another. Planning a window reads the index of its blocks; its cost does not
depend on the size of the data set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from msde import philox
from msde.data.mixture import Mixture
from msde.errors import MsdeError
from msde.philox import Key, Stream

WINDOW_BLOCKS = 64  # fewest blocks of a window
WINDOW_STEPS = 16  # fewest steps of a window, so that rounding their number up costs little
GROUP_BLOCKS = 32  # fewest blocks that the molecules of a slot are drawn from
LARGEST_SHARE = 5  # a slot has room for so many molecules of the largest size


@dataclass(frozen=True)
class SlotSize:
    """Capacity of a slot, in molecules or in atoms; the other one is None.

    Every slot has two molecules or more, for BatchNorm and for negatives. So slots for 2 or 3
    molecules hold up to 4 where more slots would leave one with a single molecule.
    """

    molecules: int | None = None
    atoms: int | None = None


@dataclass(frozen=True)
class Slots:
    """The molecules of some of a window's slots, step by step."""

    numbers: np.ndarray  # (num_molecules,) int64, of all these slots
    ptr: np.ndarray  # (num_slots + 1,) int64, where each slot starts


@dataclass(frozen=True)
class Window:
    """Consecutive steps that are planned together."""

    key: Key
    first_slot: int  # number of its first slot; slot numbers are unique in an epoch
    slots_per_step: int
    num_groups: int
    num_steps: int
    numbers: np.ndarray  # (num_molecules,) int64, the molecules to train on, block by block
    uid: np.ndarray  # (num_molecules,) u8
    num_atoms: np.ndarray  # (num_molecules,) u4

    @property
    def lanes_per_group(self) -> int:
        """Number of slots of a step that one group supplies."""
        return self.slots_per_step // self.num_groups

    def group(self, number: int) -> slice:
        """Return the molecules of a group."""
        total = len(self.numbers)
        return slice(number * total // self.num_groups, (number + 1) * total // self.num_groups)

    @functools.cached_property
    def molecules_in_step(self) -> np.ndarray:
        """Number of molecules of each step, over all slots, (num_steps,)."""
        counts = np.zeros(self.num_steps, np.int64)
        for number in range(self.num_groups):
            base, extra = self._sizes(number)
            counts += base * self.lanes_per_group + extra.reshape(self.num_steps, -1).sum(1)
        return counts

    def _sizes(self, number: int) -> tuple[int, np.ndarray]:
        """Return the number of molecules of the slots of a group, and which slots have one more."""
        group = self.group(number)
        num_slots = self.num_steps * self.lanes_per_group
        base, rest = divmod(group.stop - group.start, num_slots)
        return base, np.diff(np.arange(num_slots + 1) * rest // num_slots)

    def slots(self, lanes: range) -> Slots:
        """Return the molecules of slots `lanes` of every step."""
        by_lane: dict[int, list[np.ndarray]] = {}
        for number in sorted({lane // self.lanes_per_group for lane in lanes}):
            by_lane |= self._deal(number, lanes)
        in_order = [by_lane[lane][step] for step in range(self.num_steps) for lane in lanes]
        ptr = np.append(0, np.cumsum([len(slot) for slot in in_order]))
        return Slots(np.concatenate(in_order), ptr)

    def _deal(self, number: int, lanes: range) -> dict[int, list[np.ndarray]]:
        """Deal the molecules of a group to its slots; return those of `lanes`, step by step."""
        group = self.group(number)
        numbers, num_atoms = self.numbers[group], self.num_atoms[group].astype(np.int64)
        uid = philox.signed(self.uid[group])
        drawn = philox.words(self.key, Stream.SHUFFLE_MOLECULES, uid, 0, 3).numpy()
        base, extra = self._sizes(number)
        num_slots, rest = len(extra), int(extra.sum())
        by_size = np.argsort((num_atoms << 32) | drawn[:, 0], kind="stable")
        # The extra molecules of some slots are the smallest ones.
        first, by_size = by_size[:rest], by_size[rest:]
        row = np.arange(len(by_size)) // num_slots
        shuffled = by_size[np.argsort((row << 32) | drawn[by_size, 1], kind="stable")]
        table = shuffled.reshape(base, num_slots)
        more = dict(zip(np.flatnonzero(extra).tolist(), first, strict=True))

        dealt: dict[int, list[np.ndarray]] = {}
        for lane in range(self.lanes_per_group):
            if number * self.lanes_per_group + lane not in lanes:
                continue
            of_lane = dealt.setdefault(number * self.lanes_per_group + lane, [])
            for slot in range(lane, num_slots, self.lanes_per_group):
                molecules = table[:, slot]
                if slot in more:
                    molecules = np.append(molecules, more[slot])
                of_lane.append(numbers[molecules[np.argsort(drawn[molecules, 2], kind="stable")]])
        return dealt


class Partition:
    """Which molecules each slot of each step of each epoch holds.

    Raises:
        MsdeError: there are too few molecules for the slots, or one that is too large for them.
    """

    def __init__(
        self,
        data: Mixture,
        *,
        seed: int,
        slots_per_step: int,
        slot_size: SlotSize,
        validation_fraction: float = 0.0,
    ) -> None:
        """Derive the sizes of windows."""
        self.data = data
        self.seed = seed
        self.slots_per_step = slots_per_step
        self.slot_size = slot_size
        self.validation_fraction = validation_fraction
        if slot_size.atoms is not None and slot_size.atoms < LARGEST_SHARE * data.max_atoms:
            raise MsdeError(
                f"data.atoms_per_slot is {slot_size.atoms}, but the largest molecule has "
                f"{data.max_atoms} atoms; use at least {LARGEST_SHARE * data.max_atoms}, or "
                "convert with a smaller --max-atoms"
            )
        per_step = slots_per_step * (
            slot_size.molecules or (slot_size.atoms or 0) / data.mean_atoms
        )
        per_block = len(data) / data.num_blocks
        self._window_blocks = max(WINDOW_BLOCKS, math.ceil(WINDOW_STEPS * per_step / per_block))
        # At the end of an epoch, threads prepare windows of two epochs in turn.
        self._blocks = functools.lru_cache(maxsize=2)(self._shuffle_blocks)

    def _shuffle_blocks(self, epoch: int) -> np.ndarray:
        """Return the epoch's blocks, shuffled."""
        blocks = self.data.blocks(epoch)
        key = Key(self.seed, epoch)
        drawn = philox.words(key, Stream.SHUFFLE_BLOCKS, torch.from_numpy(blocks), 0, 2)
        return blocks[np.argsort(philox.sort_key(drawn).numpy(), kind="stable")]

    def num_windows(self, epoch: int) -> int:
        """Return how many windows an epoch has."""
        return max(1, len(self._blocks(epoch)) // self._window_blocks)

    def window(self, epoch: int, number: int) -> Window:
        """Plan one window.

        Raises:
            MsdeError: there are fewer than two molecules for each slot of a step.
        """
        blocks, windows = self._blocks(epoch), self.num_windows(epoch)
        blocks = blocks[number * len(blocks) // windows : (number + 1) * len(blocks) // windows]
        numbers, rows = self.data.index(blocks)
        train = ~held_out(rows["uid"], self.validation_fraction)
        numbers, rows = numbers[train], rows[train]
        window = Window(
            key=Key(self.seed, epoch),
            first_slot=number << 32,
            slots_per_step=self.slots_per_step,
            num_groups=_num_groups(self.slots_per_step, len(blocks)),
            num_steps=1,
            numbers=numbers,
            uid=rows["uid"],
            num_atoms=rows["num_atoms"],
        )
        return dataclasses.replace(window, num_steps=self._num_steps(window))

    def _num_steps(self, window: Window) -> int:
        """Return the fewest steps such that no slot is too large; but each has two molecules."""
        lanes, sizes = window.lanes_per_group, []
        for group in map(window.group, range(window.num_groups)):
            if self.slot_size.molecules is not None:
                sizes.append(math.ceil((group.stop - group.start) / self.slot_size.molecules))
            elif group.stop > group.start:
                atoms = window.num_atoms[group]
                room = (self.slot_size.atoms or 0) - int(atoms.max())
                sizes.append(math.ceil(int(atoms.sum(dtype=np.int64)) / room))
        fewest = len(window.numbers) // window.num_groups // (2 * lanes)
        if not fewest:
            raise MsdeError(
                f"{len(window.numbers)} molecules cannot fill {self.slots_per_step} slots with two "
                f"or more each; use at most {len(window.numbers) // 2} slots a step "
                "(train_batch_size) or more data"
            )
        return min(math.ceil(max(sizes) / lanes), fewest)

    def steps_per_epoch(self) -> int:
        """Estimate the number of steps of an epoch: exact where an epoch is one window."""
        return self.num_windows(0) * self.window(0, 0).num_steps

    def digest(self) -> str:
        """Return a digest of everything that determines the molecules of each slot."""
        facts = (self.data.digest, self.seed, self.slots_per_step, self.slot_size)
        sizes = (self.validation_fraction, WINDOW_BLOCKS, WINDOW_STEPS, GROUP_BLOCKS)
        return hashlib.sha256(repr((*facts, *sizes)).encode()).hexdigest()


def _num_groups(slots_per_step: int, blocks: int) -> int:
    """Return the most groups that share the slots evenly and have enough blocks each."""
    most = max(1, blocks // GROUP_BLOCKS)
    return max(n for n in range(1, min(most, slots_per_step) + 1) if slots_per_step % n == 0)


def held_out(uid: np.ndarray, validation_fraction: float) -> np.ndarray:
    """Return a mask of the molecules for validation: those of the lowest ids, which are hashes."""
    return uid < np.uint64(min(int(validation_fraction * 2.0**64), 2**64 - 1))


def held_out_molecules(data: Mixture, validation_fraction: float, at_most: int) -> np.ndarray:
    """Return the numbers of up to `at_most` held-out molecules, from random blocks.

    The choice depends on the data alone, not on the seed of the run.
    """
    blocks = torch.arange(data.num_blocks)
    drawn = philox.words(Key(0, 0), Stream.SHUFFLE_BLOCKS, blocks, 0, 2)
    found: list[np.ndarray] = []
    if validation_fraction > 0:
        for block in np.argsort(philox.sort_key(drawn).numpy(), kind="stable"):
            numbers, rows = data.index(np.array([block]))
            found.append(numbers[held_out(rows["uid"], validation_fraction)])
            if sum(map(len, found)) >= at_most:
                break
    return np.sort(np.concatenate([np.zeros(0, np.int64), *found])[:at_most])
