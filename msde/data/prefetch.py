"""Batches that reach a GPU on a stream of their own, while it computes the steps before."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from msde.data.batch import MoleculeBatch


class PrefetchedSlots(NamedTuple):
    """The slots of a step, and what has to have happened on the GPU before they are there."""

    slots: list[MoleculeBatch]
    done: torch.cuda.Event

    def wait(self) -> list[MoleculeBatch]:
        """Have the current stream wait for them, and the GPU keep their memory until it is done."""
        current = torch.cuda.current_stream(self.slots[0].pos.device)
        current.wait_event(self.done)
        for batch in self.slots:
            for tensor in batch.tensors().values():
                tensor.record_stream(current)
        return self.slots


class SideStream:
    """Has a GPU copy or make batches beside the work of its current stream."""

    def __init__(self, device: torch.device) -> None:
        """Begin when all is done that the GPU has been told so far."""
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def send(self, make: Callable[[], list[MoleculeBatch]]) -> PrefetchedSlots:
        """Have `make` tell the GPU what to copy and to compute; wait for none of it."""
        with torch.cuda.stream(self._stream):
            return PrefetchedSlots(make(), self._stream.record_event())
