"""The model's noise and terms compiled by torch.compile, for batches of shapes that repeat.

A training step is many small operations. torch.compile joins those that work on the same numbers,
those that do not depend on each other, and equal products of different layers; the fused ops stay
as they are. It compiles for one shape, since it joins products of known sizes only.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msde.config import Config
from msde.data.batch import MoleculeBatch
from msde.model import MoleculeSDE, Noise
from msde.philox import Key
from msde.training import kernel_groups

MAX_SHAPES = 24
OPTIONS: dict[str, Any] = {
    # Dropout draws what it draws without compilation.
    "fallback_random": True,
    # Kernels that do not depend on each other are launched as one.
    "combo_kernels": True,
    "combo_kernel_max_num_nodes": 64,
    "combo_kernel_peak_memory_pct_threshold": None,
    # Sums over rows and over columns of the same numbers are not made one kernel: those join none.
    "triton.mix_order_reduction": False,
    # So are products of the same sizes, up to so many operations apart.
    "post_grad_fusion_options": {
        "batch_linear_post_grad": {"min_fuse_set_size": 2, "max_fuse_search_depth": 200}
    },
}

log = logging.getLogger(__name__)


def sizes_of(batch: MoleculeBatch) -> tuple:
    """Return what decides whether a step of one batch can be repeated for another."""
    shapes = tuple(tuple(tensor.shape) for tensor in batch.tensors().values())
    return batch.max_num_atoms, batch.num_padding, shapes


def compiled(function: Callable) -> Callable:
    """Return a function compiled for each shape of its inputs; OPTIONS says how."""
    import torch._dynamo
    import torch._inductor

    kernel_groups.install()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    known = torch._inductor.list_options()  # they differ between releases of torch
    options = {name: value for name, value in OPTIONS.items() if name in known}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


class CompiledMoleculeSDE(MoleculeSDE):
    """The model with its noise and its terms compiled, if `run.compile` says so.

    A shape of padded batches is compiled when it is met a second time. There may be no collective
    in the terms, and no activation checkpointing.
    """

    def __init__(self, config: Config) -> None:
        """Build the networks; nothing is compiled yet."""
        super().__init__(config)
        self._compiled: dict[str, Callable] = {}
        self._times_met: collections.Counter[tuple] = collections.Counter()
        self._shapes: set[tuple] = set()  # those that are compiled

    def is_repeated(self, batch: MoleculeBatch) -> bool:
        """Return whether steps of padded batches, which may have the same shape, are being made."""
        return bool(batch.num_padding) and self.training and torch.is_grad_enabled()

    def forward(
        self, batch: MoleculeBatch, noise: Noise | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `MoleculeSDE` returns."""
        if self.config.run.compile and self.is_repeated(batch):
            sizes = sizes_of(batch)
            self._times_met[sizes] += 1
            if self._times_met[sizes] == 2 and len(self._shapes) < MAX_SHAPES:
                self._shapes.add(sizes)
                log.info("compiling steps of %d atoms, which takes minutes", len(batch.pos))
        return super().forward(batch, noise)

    def draw_noise(self, batch: MoleculeBatch) -> Noise:
        """Return what `MoleculeSDE.draw_noise` returns, but for rounding."""
        draw = super().draw_noise
        if not self._is_compiled(batch):
            return draw(batch)
        # A number would be a constant of what is compiled.
        epoch = torch.full((), batch.key.epoch, device=batch.pos.device)
        keyed = dataclasses.replace(batch, key=Key(batch.key.seed, epoch))
        return self._compile("noise", draw)(keyed)

    def terms(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return what `MoleculeSDE.terms` returns."""
        plain = super().terms
        if not self._is_compiled(batch):
            return plain(batch, noise)
        return self._compile("terms", plain)(batch, noise)

    def _compile(self, name: str, function: Callable) -> Callable:
        if name not in self._compiled:
            self._compiled[name] = compiled(function)
        return self._compiled[name]

    def _is_compiled(self, batch: MoleculeBatch) -> bool:
        return self.is_repeated(batch) and sizes_of(batch) in self._shapes
