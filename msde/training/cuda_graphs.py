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
from torch import Tensor

from msde.data.batch import MoleculeBatch
from msde.model import MoleculeSDE, Noise

MOST_RECORDS = 24
WARM_UP = 3  # passes before those that are recorded: libraries choose their kernels

log = logging.getLogger(__name__)

# Takes what computes some tensors; returns their memory, and what computes them there again.
Recorder = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], None]]]


class CudaGraphs:
    """Records on a GPU. Records share their memory, so each is to be used up before the next."""

    def __init__(self) -> None:
        """Open the memory that records share."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Record what a function computes."""
        graph = torch.cuda.CUDAGraph()
        # Meanwhile another thread makes batches, which "global" would forbid it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = run()
        return results, graph.replay


class _Record:
    """The losses of batches of one kind, and the gradients of the parameters that have any."""

    def __init__(
        self,
        model: MoleculeSDE,
        batch: MoleculeBatch,
        tensors: tuple[Tensor, ...],
        recorder: Recorder,
    ) -> None:
        """Record passes over the tensors of a batch and of its noise."""
        self._model, self._batch, self._names = model, batch, list(batch.tensors())
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._tensors = [tensor.clone() for tensor in tensors]
        self._upper = batch.pos.new_ones(len(batch.valid(batch.uid)))
        with _on_another_stream(self._upper.device):
            for _ in range(WARM_UP):
                self._forward()
                self._backward()
        self._terms, self._replay_forward = recorder(self._forward)
        (self._flat,), self._replay_backward = recorder(self._backward)

    def _forward(self) -> list[Tensor]:
        count = len(self._names)
        fields: dict[str, Any] = dict(zip(self._names, self._tensors[:count], strict=True))
        batch = dataclasses.replace(self._batch, **fields)
        terms = self._model.losses(batch, Noise(*self._tensors[count:]))
        self._total = terms["total"]
        return [term.detach() for term in terms.values()]

    def _backward(self) -> list[Tensor]:
        gradients = torch.autograd.grad(
            self._total, self.parameters, self._upper, allow_unused=True
        )
        # Some of the published layout have no part in the losses.
        found = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        self.parameters = [parameter for parameter, _ in found]
        return [torch.cat([gradient.flatten() for _, gradient in found])]

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the terms of a batch, as tensors of their own."""
        for place, tensor in zip(self._tensors, tensors, strict=True):
            place.copy_(tensor)
        self._replay_forward()
        return tuple(term.clone() for term in self._terms)

    def backward(self, upper: Tensor) -> list[Tensor]:
        """Return the parameters' gradients, as parts of a tensor of their own."""
        self._upper.copy_(upper)
        self._replay_backward()
        parts = self._flat.clone().split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


class _Replay(torch.autograd.Function):
    """The terms as a function of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, record: _Record, tensors: tuple[Tensor, ...], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        total, *others = record.forward(tensors)
        ctx.record = record
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.record.backward(grads[0])


class ReplayedLosses:
    """`model.losses`, recorded for each kind of batch when it is met for the second time.

    Its backward pass is to follow before another batch's forward pass. There may be no collective
    inside, and no activation checkpointing.
    """

    def __init__(self, model: MoleculeSDE, recorder: Recorder | None = None) -> None:
        """Record by CUDA graphs, if nothing else is given."""
        self._model, self._recorder = model, recorder or CudaGraphs()
        self._met: collections.Counter[tuple] = collections.Counter()
        self._records: dict[tuple, _Record | None] = {}

    def __call__(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return what `model.losses` returns; only the total is to be differentiated."""
        if not (batch.num_padding and self._model.training and torch.is_grad_enabled()):
            return self._model.losses(batch, noise)
        tensors = (*batch.tensors().values(), *vars(noise).values())
        sizes = tuple(tuple(tensor.shape) for tensor in tensors)
        kind = (batch.max_num_atoms, batch.num_padding, sizes)
        self._met[kind] += 1
        if self._met[kind] == 2 and len(self._records) < MOST_RECORDS:
            self._records[kind] = self._recorded(batch, tensors)
        record = self._records.get(kind)
        if record is None:
            return self._model.losses(batch, noise)
        terms = _Replay.apply(record, tensors, *record.parameters)
        return dict(zip(self._model.TERMS, terms, strict=True))

    def _recorded(self, batch: MoleculeBatch, tensors: tuple[Tensor, ...]) -> _Record | None:
        try:
            with preserve_state(self._model):
                return _Record(self._model, batch, tensors, self._recorder)
        except RuntimeError as error:
            log.warning(f"steps of this size are not replayed: {str(error).splitlines()[0]}")
            return None


@contextlib.contextmanager
def _on_another_stream(device: torch.device) -> Iterator[None]:
    """Let a GPU work on a stream of its own, where it may be recorded afterwards."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextlib.contextmanager
def preserve_state(model: MoleculeSDE) -> Iterator[None]:
    """Undo what passes that only record do to running statistics and to torch's generators.

    Casts that autocast remembers would be those of the recording for ever, so it remembers none.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_autocast_cache_enabled(remembers)
        for buffer, before in buffers:
            buffer.data.copy_(before)
