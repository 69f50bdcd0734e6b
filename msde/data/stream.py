"""From shards to batches: the stream that follows the partition of an epoch.

The unit is the slot, a fixed list of molecules that one forward pass sees. An optimizer step is a
fixed number of slots, shared among the ranks. Which molecules a slot holds depends on the data, the
seed, the epoch and the number of slots in a step, never on the world size; so BatchNorm, negatives
and noise do not depend on it either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from msde.data.batch import MoleculeBatch
from msde.data.masking import drop_hydrogens, mask_columns
from msde.data.mixture import Mixture
from msde.data.packed import PackedMolecules
from msde.data.padding import pad
from msde.data.partition import Partition, Window
from msde.data.prefetch import PrefetchedSlots, SideStream, map_in_threads, run_ahead
from msde.data.resident import ResidentMolecules
from msde.errors import MsdeError

STEPS_AHEAD = 4  # steps that are prefetched for the training thread


class Position(NamedTuple):
    """The position of a stream: its next step."""

    epoch: int
    window: int
    step: int  # in the window


Steps = Generator[tuple[Position, float, list[MoleculeBatch] | PrefetchedSlots], None, None]


class _Prepared(NamedTuple):
    """One window and a reader of the molecules of this rank's slots."""

    window: Window
    ptr: np.ndarray  # (num_slots + 1,) where each of this rank's slots starts
    read: Callable[[int, int], PackedMolecules]  # molecules `first` to `last - 1` of these slots


class ShardStream:
    """An endless stream of optimizer steps over the data, for one rank of many.

    Its position is three integers, equal on all ranks and valid for any world size that divides
    the slots of a step, and for any number of workers.
    """

    def __init__(
        self,
        partition: Partition,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        masking_ratio: float = 0.0,
        hydrogen_dropout: float = 0.0,
        padded: bool = False,
    ) -> None:
        """Start at the first step of epoch 0.

        Args:
            workers: threads that prepare windows in the background, with one more that makes
                batches; 0 does both in the training thread. Batches do not depend on it.
            masking_ratio: see `masking.mask_columns`.
            hydrogen_dropout: the share of `masking.drop_hydrogens`.
            padded: pad batches to sizes that repeat, see `padding`.

        Raises:
            MsdeError: the world size does not divide the slots.
        """
        slots_per_step = partition.slots_per_step
        if slots_per_step % world_size:
            raise MsdeError(
                f"{slots_per_step} slots a step (train_batch_size) cannot be shared evenly by "
                f"{world_size} ranks; use a multiple of {world_size}"
            )
        self.partition = partition
        self.workers = workers
        self.masking_ratio, self.padded = masking_ratio, padded
        self.hydrogen_dropout = hydrogen_dropout
        share = slots_per_step // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
        self.position = Position(0, 0, 0)
        self.epochs_done = 0.0
        self._device = torch.device("cpu")
        self._side: SideStream | None = None
        self._resident: ResidentMolecules | None = None
        self._digest = partition.digest()

    @property
    def data(self) -> Mixture:
        """The data that are streamed."""
        return self.partition.data

    def send_to(self, device: torch.device) -> None:
        """Make batches on a device from now on; on a GPU, on a CUDA stream of their own."""
        self._device = device
        self._side = SideStream(device) if device.type == "cuda" else None

    def keep_on(self, device: torch.device) -> None:
        """Load all molecules to a device now, and make batches of them there."""
        self._resident = ResidentMolecules(self.data, device)
        self.send_to(device)

    def __iter__(self) -> Generator[list[MoleculeBatch], None, None]:
        """Yield this rank's slots of each step without end, from the current position on.

        When a step is yielded, the position is already that of the following step: a checkpoint
        that is written after a step resumes with the next one. Prefetched steps do not move it.
        """
        steps = self._steps(self.position)
        if self.workers:
            steps = run_ahead(steps, STEPS_AHEAD)
        try:
            for self.position, self.epochs_done, slots in steps:
                yield slots.wait() if isinstance(slots, PrefetchedSlots) else slots
        finally:
            steps.close()

    def _steps(self, start: Position) -> Steps:
        """Yield each step with the position after it, also as a number of epochs."""
        names = self._windows(start.epoch, start.window)
        if self.workers:
            prepared = map_in_threads(self._prepare, names, self.workers)
        else:
            prepared = (self._prepare(*name) for name in names)
        try:
            first = start.step
            for (epoch, number), part in zip(
                self._windows(start.epoch, start.window), prepared, strict=False
            ):
                windows, num_steps = self.partition.num_windows(epoch), part.window.num_steps
                for step in range(first, num_steps):
                    after = Position(epoch, number, step + 1)
                    if step + 1 == num_steps:
                        last = number + 1 == windows
                        after = Position(*((epoch + 1, 0) if last else (epoch, number + 1)), 0)
                    done = epoch + (number + (step + 1) / num_steps) / windows
                    yield after, done, self._slots(part, step)
                first = 0
        finally:
            prepared.close()

    def _windows(self, epoch: int, number: int) -> Iterator[tuple[int, int]]:
        """Yield (epoch, number) of all windows from one on."""
        while True:
            yield epoch, number
            number += 1
            if number == self.partition.num_windows(epoch):
                epoch, number = epoch + 1, 0

    def _prepare(self, epoch: int, number: int) -> _Prepared:
        """Plan a window and read the molecules of this rank's slots, in their order."""
        window = self.partition.window(epoch, number)
        slots = window.slots(self.own_slots)
        numbers, ptr = slots.numbers, slots.ptr
        if self._resident:
            take = self._resident.take
            return _Prepared(window, ptr, lambda first, last: take(numbers[first:last]))
        columns = self.data.fetch(numbers, window.key)

        def read(first: int, last: int) -> PackedMolecules:
            part = columns.part(first, last)
            part = drop_hydrogens(part, self.hydrogen_dropout, window.key)
            return PackedMolecules.from_columns(mask_columns(part, self.masking_ratio, window.key))

        return _Prepared(window, ptr, read)

    def _slots(self, part: _Prepared, step: int) -> list[MoleculeBatch] | PrefetchedSlots:
        """Make the batches of this rank's slots; on a GPU, queue their kernels."""

        def make() -> list[MoleculeBatch]:
            return [self._batch(part, step, lane) for lane in self.own_slots]

        return self._side.send(make) if self._side else make()

    def _batch(self, part: _Prepared, step: int, lane: int) -> MoleculeBatch:
        """Make the batch of one slot: its packed molecules are expanded on the device."""
        window = part.window
        own = step * len(self.own_slots) + lane - self.own_slots.start
        first, last = int(part.ptr[own]), int(part.ptr[own + 1])
        # The mean over slots of (slot mean x weight) is the mean over the molecules of the step.
        weight = (last - first) * window.slots_per_step / int(window.molecules_in_step[step])
        slot = window.first_slot + step * window.slots_per_step + lane
        packed = part.read(first, last)
        packed = pad(packed) if self.padded else packed
        return MoleculeBatch.expand(packed.to(self._device), window.key, slot, weight)

    def state_dict(self) -> dict[str, int | float | str]:
        """Return the position of the next step and the digest of the partition."""
        return {**self.position._asdict(), "epochs": self.epochs_done, "plan": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a saved position.

        Raises:
            MsdeError: the position belongs to other data, another seed or other slots.
        """
        if state["plan"] != self._digest:
            raise MsdeError(
                "the checkpoint was written with other data, another run.seed, another "
                "data.validation_fraction or other slots (train_batch_size, "
                "data.molecules_per_step, data.molecules_per_slot, data.atoms_per_slot); resume "
                "with the same ones, or choose another --output"
            )
        self.position = Position(*(int(state[name]) for name in Position._fields))
        self.epochs_done = state.get("epochs", float(self.position.epoch))
