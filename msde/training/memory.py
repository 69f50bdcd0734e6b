"""Memory: what the states of a model take, and an error that explains when there is too little."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msde.config import deepspeed
from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError


@dataclass(frozen=True)
class StateMemory:
    """Memory of the states of a model on each rank, in bytes, without activations."""

    device: int
    host: int  # offloaded states
    working: int = 0  # of the device: ZeRO's buffers, when the activations are gone


def state_memory(num_parameters: int, world_size: int, ds_config: dict[str, Any]) -> StateMemory:
    """Return the peak memory of weights, gradients and Adam's state within a step.

    All are float32. As DeepSpeed 0.19.8 keeps them: ZeRO 1 to 3 hold a second, partitioned copy of
    the weights, offloaded optimizers a second copy of the gradients; ZeRO 3 gathers up to
    `stage3_max_live_parameters` weights; reduction works in four buckets.
    """
    zero = ds_config.get("zero_optimization", {})
    stage = deepspeed.zero_stage(ds_config)
    if stage == 0:
        return StateMemory(device=16 * num_parameters, host=0)
    bucket = min(zero.get("reduce_bucket_size", 500_000_000), num_parameters)
    live = min(zero.get("stage3_max_live_parameters", 1_000_000_000), num_parameters)
    share = num_parameters / world_size
    gradients = 4 * (num_parameters if stage == 1 else share)
    weights = 4 * (num_parameters if stage < 3 else share)
    optimizer = 12 * share
    working = 16 * bucket
    gathered = 4 * live if stage == 3 else 0
    offloads = {k for k in ("offload_optimizer", "offload_param") if _offloaded(zero, k)}
    host = 0.0
    if "offload_optimizer" in offloads:
        host, optimizer, gradients = optimizer + gradients + 4 * share, 0.0, 0.0
    if "offload_param" in offloads:
        host, weights = host + weights, 0.0
    device = weights + gathered + gradients + optimizer + working
    return StateMemory(int(device), int(host), int(working))


def _offloaded(zero: dict[str, Any], key: str) -> bool:
    return zero.get(key, {}).get("device", "none") != "none"


class LiveMemory(TorchDispatchMode):
    """Follows the memory of the tensors that are made inside, until they are freed.

    What an op of ours needs within its C++ code is not seen.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Start at no bytes; the memory of `known` is not counted."""
        super().__init__()
        self.bytes = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._counted: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        """Count the memory of what an operator returns, each memory once."""
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._counted:
            return

        def freed(_: weakref.ref) -> None:
            self.bytes -= size
            del self._counted[key]

        self.bytes += size
        self._counted[key] = weakref.ref(storage, freed)


class OutOfMemory(MsdeError):
    """Something does not fit the device's memory."""


SMALLER_SLOTS = (
    "use a smaller data.molecules_per_slot or data.atoms_per_slot with more slots a step "
    "(train_batch_size)"
)
SMALLER_STATES = (
    "its moments and gradients do not fit beside the weights: share them among more GPUs or keep "
    "them on the host, by a higher zero_optimization.stage or offload_optimizer (ds_configs/), or "
    "use smaller slots"
)


@contextlib.contextmanager
def explain_out_of_memory(what: MoleculeBatch | str, advice: str = SMALLER_SLOTS) -> Iterator[None]:
    """Turn an out-of-memory error inside into one that says where it was and what to change.

    Args:
        what: a slot, or in words what is done inside.

    Raises:
        OutOfMemory: memory ran out inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        where = what if isinstance(what, str) else _describe(what)
        raise OutOfMemory(f"out of memory in {where}; {advice}") from error


def _describe(batch: MoleculeBatch) -> str:
    return (
        f"slot {batch.slot} of epoch {batch.key.epoch}: {batch.num_graphs} molecules, "
        f"{batch.num_atoms} atoms, {batch.pair_index.shape[1]} pairs, the largest molecule with "
        f"{batch.max_num_atoms} atoms"
    )
