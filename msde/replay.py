"""Losses and their gradients recorded on a GPU and replayed, for batches of sizes that repeat.

A step of many small kernels takes a GPU's host longer to launch than the GPU to run. A recorded
one (a CUDA graph) is launched as a whole; it fits batches of the recorded sizes, which `filler`
makes few.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from msde.batch import MoleculeBatch
from msde.model import MoleculeSDE, Noise

MOST_RECORDS = 24  # each keeps the memory of its gradients

log = logging.getLogger(__name__)


class _OfTensors(nn.Module):
    """The losses as a function of tensors alone, as they are recorded."""

    def __init__(self, model: MoleculeSDE, batch: MoleculeBatch) -> None:
        """Take from a batch what is not a tensor."""
        super().__init__()
        self.model, self._batch, self._names = model, batch, list(batch.tensors())
        self.train(model.training)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the losses' values, given the tensors of a batch and of its noise."""
        count = len(self._names)
        fields: dict[str, Any] = dict(zip(self._names, tensors[:count], strict=True))
        batch = dataclasses.replace(self._batch, **fields)
        total, *others = self.model.losses(batch, Noise(*tensors[count:])).values()
        return total, *(term.detach() for term in others)


class ReplayedLosses:
    """`model.losses`, recorded for each kind of batch when it is met for the second time.

    There may be no collective inside, and no activation checkpointing.
    """

    def __init__(self, model: MoleculeSDE, record: Callable[..., Any] | None = None) -> None:
        """Record by CUDA graphs, or by a function like torch.cuda.make_graphed_callables."""
        self._model, self._record = model, record or _as_cuda_graphs
        self._met: collections.Counter[tuple] = collections.Counter()
        self._records: dict[tuple, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return what `model.losses` returns."""
        if not (batch.num_filler and self._model.training and torch.is_grad_enabled()):
            return self._model.losses(batch, noise)
        tensors = (*batch.tensors().values(), *vars(noise).values())
        sizes = tuple(tuple(tensor.shape) for tensor in tensors)
        kind = (batch.max_num_atoms, batch.num_filler, sizes)
        self._met[kind] += 1
        if kind not in self._records:
            if self._met[kind] < 2 or len(self._records) == MOST_RECORDS:
                return self._model.losses(batch, noise)
            self._records[kind] = self._recorded(batch, tensors)
        return dict(zip(self._model.TERMS, self._records[kind](*tensors), strict=True))

    def _recorded(
        self, batch: MoleculeBatch, tensors: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, ...]]:
        losses = _OfTensors(self._model, batch)
        try:
            with _as_if_nothing_happened(self._model):
                return self._record(losses, tensors)
        except RuntimeError as error:
            log.warning(f"steps of this size are not replayed: {str(error).splitlines()[0]}")
            return _OfTensors(self._model, batch)


def _as_cuda_graphs(losses: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    # Casts that autocast remembers would be those of the recording for ever.
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        # Some parameters of the published layout have no part in the losses.
        return torch.cuda.make_graphed_callables(losses, tensors, allow_unused_input=True)
    finally:
        torch.set_autocast_cache_enabled(remembers)


@contextlib.contextmanager
def _as_if_nothing_happened(model: nn.Module) -> Iterator[None]:
    """Undo what passes that only record do to running statistics and to torch's generator."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[b.device for b in model.parameters() if b.is_cuda][:1]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
