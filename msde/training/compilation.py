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
from msde.ops import dispatch
from msde.philox import Key

MAX_SHAPES = 24
OPTIONS: dict[str, Any] = {
    # On a GPU dropout draws what it draws without compilation.
    "fallback_random": True,
    # Kernels that do not depend on each other are launched as one.
    "combo_kernels": True,
    "combo_kernel_max_num_nodes": 64,
    "combo_kernel_peak_memory_pct_threshold": None,
    # Sums over rows and over columns of the same numbers are not made one kernel: those join none.
    "triton.mix_order_reduction": False,
    # On a CPU: with several threads torch 2.13 writes sums by index past the end of their memory.
    "cpp.threads": 1,
}
# Products of the same sizes, up to so many operations apart, become one. torch's compiler does not
# look at their types, so all must have the same.
JOINED_PRODUCTS: dict[str, Any] = {
    "post_grad_fusion_options": {
        "batch_linear_post_grad": {"min_fuse_set_size": 2, "max_fuse_search_depth": 200}
    },
}
LONG_REDUCTION = 2048  # numbers in a sum from which on the compiler does not join it with others

log = logging.getLogger(__name__)


def sizes_of(batch: MoleculeBatch) -> tuple:
    """Return what decides whether a step of one batch can be repeated for another."""
    shapes = tuple(tuple(tensor.shape) for tensor in batch.tensors().values())
    return batch.max_num_atoms, batch.num_padding, shapes


def with_epoch_as_tensor(batch: MoleculeBatch) -> MoleculeBatch:
    """Return a batch for compiled noise, of which a number would be a constant."""
    epoch = torch.full((), batch.key.epoch, device=batch.pos.device)
    return dataclasses.replace(batch, key=Key(batch.key.seed, epoch))


def compiled(function: Callable, under_autocast: bool = False) -> Callable:
    """Return a function compiled for each shape of its inputs; OPTIONS says how.

    Args:
        under_autocast: some products are of bfloat16; then none are joined.
    """
    import torch._dynamo
    import torch._inductor
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(
        lambda scheduler: groups_of_kernels(scheduler, _is_on_gpu)
    )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    known = torch._inductor.list_options()  # they differ between releases of torch
    wanted = OPTIONS if under_autocast else OPTIONS | JOINED_PRODUCTS
    options = {name: value for name, value in wanted.items() if name in known}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def groups_of_kernels(scheduler: Any, is_joined: Callable[[Any], bool]) -> list[list[Any]]:
    """Return the nodes of torch's scheduler that can be joined, group after group.

    By default the compiler joins kernels that have as many operators of any sort before them.
    Branches of the network that have unlike layers then hardly meet. Here a group is taken when
    nothing else is left to run: the kernel with the longest chain of kernels behind it, and all
    others of its kind that wait. Those that little depends on wait for company.

    Args:
        is_joined: of a node, whether it may have a part in a group.
    """
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    order = [node for level in scheduler._topological_sort_nodes() for node in level]
    before = {node: scheduler._get_unmet_dep_nodes(node) for node in order}
    after = collections.defaultdict(list)
    for node, others in before.items():
        for other in others:
            after[other].append(node)
    joined = set(filter(is_joined, ForeachKernelSchedulerNode.combinable_nodes(order)))
    chain: dict[Any, int] = {}  # the most kernels one after another from this one on
    for node in reversed(order):
        chain[node] = (node in joined) + max((chain[other] for other in after[node]), default=0)
    num_waited_for = {node: len(others) for node, others in before.items()}
    ready, found = [node for node in order if not before[node]], []
    while ready:
        taken = [node for node in ready if node not in joined]
        if not taken:
            ready.sort(key=chain.__getitem__, reverse=True)
            taken = [node for node in ready if _kind(node) == _kind(ready[0])]
            taken = taken[: OPTIONS["combo_kernel_max_num_nodes"]]
            found.append(taken)
        done = set(taken)
        ready = [node for node in ready if node not in done]
        for node in taken:
            for other in after[node]:
                num_waited_for[other] -= 1
                if not num_waited_for[other]:
                    ready.append(other)
    return found


def _is_on_gpu(node: Any) -> bool:
    return node.get_device() is not None and node.get_device().type == "cuda"


def _kind(node: Any) -> tuple[Any, ...]:
    """Return what two nodes that become one kernel have in common."""
    rows = node.group[-1][-1] if node.is_reduction() else 0
    return node.get_device(), node.is_reduction(), rows > LONG_REDUCTION


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
        """Return what `MoleculeSDE.draw_noise` returns."""
        draw = super().draw_noise
        # Without the op that draws normals they would be rounded otherwise than in plain steps.
        if not (self._is_compiled(batch) and dispatch.available(batch.pos.device.type)):
            return draw(batch)
        return self._compile("noise", draw, batch)(with_epoch_as_tensor(batch))

    def terms(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return what `MoleculeSDE.terms` returns."""
        plain = super().terms
        if not self._is_compiled(batch):
            return plain(batch, noise)
        return self._compile("terms", plain, batch)(batch, noise)

    def _compile(self, name: str, function: Callable, batch: MoleculeBatch) -> Callable:
        if name not in self._compiled:
            under_autocast = torch.is_autocast_enabled(batch.pos.device.type)
            self._compiled[name] = compiled(function, under_autocast)
        return self._compiled[name]

    def _is_compiled(self, batch: MoleculeBatch) -> bool:
        return self.is_repeated(batch) and sizes_of(batch) in self._shapes
