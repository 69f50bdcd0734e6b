"""The model's terms captured in CUDA graphs and replayed, for batches of shapes that repeat.

The host takes longer to launch the many small kernels of a step than a GPU takes to run them. A
CUDA graph is launched as a whole. It fits batches of the captured shape; `data.padding` makes such
shapes few.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msde.config import Config
from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError
from msde.model import MoleculeSDE, Noise, names_of_terms
from msde.training.compilation import CompiledMoleculeSDE, sizes_of

MAX_GRAPHS = 24
WARM_UP = 3  # passes before the capture, in which libraries choose their kernels

# Takes a function that computes tensors; returns those tensors, and a function that computes them
# again in the same memory.
Capture = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], None]]]


class CudaCapture:
    """Captures on a GPU. The graphs share memory: use the results of one before the next runs."""

    def __init__(self) -> None:
        """Open the memory pool of the graphs."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Capture what a function computes."""
        graph = torch.cuda.CUDAGraph()
        # Meanwhile another thread makes batches, which "global" would forbid it.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, _side_stream(), capture_error_mode=mode):
            results = run()
        return results, graph.replay


class _Graph:
    """Terms of batches of one shape, and the gradients of the parameters that have any."""

    def __init__(
        self,
        compute: Callable[[MoleculeBatch, Noise], dict[str, Tensor]],
        parameters: list[torch.nn.Parameter],
        batch: MoleculeBatch,
        noise: Noise,
        capture: Capture,
        gradients: dict[int, Tensor],
    ) -> None:
        """Capture both passes of `compute` over copies of a batch and of its noise.

        Args:
            gradients: by size, what the graphs write all gradients to. They share it, because one
                of their own takes as much memory as the weights.
        """
        self._shared = gradients
        self._compute, self.parameters = compute, parameters
        self._batch = dataclasses.replace(batch, **_copies(batch.tensors()))
        self._noise = Noise(**_copies(vars(noise)))
        self._upper = batch.pos.new_ones(len(batch.valid(batch.uid)))  # gradient of the total
        with _on_side_stream(self._upper.is_cuda):
            for _ in range(WARM_UP):
                self._forward()
                self._backward()
        self._terms, self._replay_forward = capture(self._forward)
        (self._flat,), self._replay_backward = capture(self._backward)

    def _forward(self) -> list[Tensor]:
        terms = self._compute(self._batch, self._noise)
        self._total = terms["total"]
        return [term.detach() for term in terms.values()]

    def _backward(self) -> list[Tensor]:
        # Its nodes must not outlive it: they belong to the side stream, and steps would use them.
        total = self._total
        del self._total
        # Without graphs the engine leaves autocast before the backward pass.
        with torch.autocast(self._upper.device.type, enabled=False):
            gradients = torch.autograd.grad(total, self.parameters, self._upper, allow_unused=True)
        # Some parameters of the published layout have no part in the terms.
        found = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        self.parameters = [parameter for parameter, _ in found]
        size = sum(gradient.numel() for _, gradient in found)
        if size not in self._shared:  # in the warm-up, so outside of the graphs' own memory
            self._shared[size] = self._upper.new_empty(size)
        flat = self._shared[size]
        torch.cat([gradient.flatten() for _, gradient in found], out=flat)
        return [flat]

    def forward(self, batch: MoleculeBatch, noise: Noise) -> tuple[Tensor, ...]:
        """Return the terms of a batch of the captured shape, in memory of their own."""
        for captured, given in (
            (self._batch.tensors(), batch.tensors()),
            (vars(self._noise), vars(noise)),
        ):
            for name, tensor in captured.items():
                tensor.copy_(given[name])
        self._replay_forward()
        return tuple(term.clone() for term in self._terms)

    def backward(self, upper: Tensor) -> list[Tensor]:
        """Return the parameters' gradients, as parts of one tensor in memory of its own."""
        self._upper.copy_(upper)
        self._replay_backward()
        parts = self._flat.clone().split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


def _copies(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


class _Replay(torch.autograd.Function):
    """The terms as a function of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, graph: _Graph, batch: MoleculeBatch, noise: Noise, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        total, *others = graph.forward(batch, noise)
        ctx.graph = graph
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.graph.backward(grads[0])


class GraphedMoleculeSDE(CompiledMoleculeSDE):
    """The model with its terms captured for each shape of batch that is met a second time.

    What is captured is compiled, if `run.compile` says so.
    The backward pass of a batch has to come before the forward pass of the next. There may be no
    collective in the terms, and no activation checkpointing.
    """

    def __init__(self, config: Config, capture: Capture | None = None) -> None:
        """Build the networks; by default, capture in CUDA graphs."""
        super().__init__(config)
        self._capture = capture or CudaCapture()
        self._met: collections.Counter[tuple] = collections.Counter()
        self._graphs: dict[tuple, _Graph] = {}
        self._gradients: dict[int, Tensor] = {}

    def terms(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return what `MoleculeSDE.terms` returns; of a replay, only the total has a gradient."""
        if not self.is_repeated(batch):
            return super().terms(batch, noise)
        shape = sizes_of(batch)
        self._met[shape] += 1
        if self._met[shape] == 2 and len(self._graphs) < MAX_GRAPHS:
            self._graphs[shape] = self._captured(batch, noise)
        graph = self._graphs.get(shape)
        if graph is None:
            return super().terms(batch, noise)
        terms = _Replay.apply(graph, batch, noise, *graph.parameters)
        return dict(zip(names_of_terms(self.config.loss), terms, strict=True))

    def _captured(self, batch: MoleculeBatch, noise: Noise) -> _Graph:
        """Capture the terms of a batch.

        Raises:
            MsdeError: torch cannot. It leaves the stream, the memory and the generator in the
                middle of the capture then, so that the process cannot go on.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        given = (parameters, batch, noise, self._capture, self._gradients)
        try:
            with preserve_state(self):
                return _Graph(super().terms, *given)
        except torch.OutOfMemoryError:  # the run says what to do
            raise
        except RuntimeError as error:
            first: BaseException = error  # clearing up after it fails, too
            while first.__context__ is not None:
                first = first.__context__
            reason = (str(first).splitlines() or [type(first).__name__])[0]
            key = "compile" if self.config.run.compile else "cuda_graphs"
            raise MsdeError(
                f"a step cannot be captured in a CUDA graph: {reason}; resume with run.{key}=false"
            ) from error


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """Return the stream of captures and of the passes before: libraries keep memory for each."""
    return torch.cuda.Stream()


@contextlib.contextmanager
def _on_side_stream(on_gpu: bool) -> Iterator[None]:
    """Let a GPU work on another stream, as passes before a capture must."""
    if not on_gpu:
        yield
        return
    _side_stream().wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(_side_stream()):
        yield
    torch.cuda.current_stream().wait_stream(_side_stream())


@contextlib.contextmanager
def preserve_state(model: MoleculeSDE) -> Iterator[None]:
    """Undo what the passes of a capture do to running statistics and to torch's generators.

    Autocast caches no casts meanwhile: a cached cast would be replayed with the captured weights.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for buffer, before in buffers:
            buffer.data.copy_(before)
