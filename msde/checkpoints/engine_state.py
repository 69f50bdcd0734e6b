"""Checkpoints of a DeepSpeed engine: written as a whole or not at all, chosen, and loaded.

    checkpoints/step-000001000/
        MANIFEST.json       see `snapshots`
        model.safetensors   the weights        ema.safetensors   their moving average, if any
        config.json         the run's configuration
        README.md           the model card, which is not hashed: it is there to be edited
        *.pt                DeepSpeed's state

DeepSpeed's files are pickles: a file is only loaded if it has the hash in the run's own manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msde.checkpoints import card, conversion
from msde.checkpoints.snapshots import (
    folder_name,
    folders,
    make_room,
    newest_problem,
    newest_valid,
    publish,
    undo_if_disk_full,
)
from msde.checkpoints.weights import save_weights, write_weights
from msde.config import Config, from_dict, leaves, read_json
from msde.errors import MsdeError, NoCheckpoint
from msde.files import MODEL, hash_files
from msde.model.ema import ExponentialMovingAverage

log = logging.getLogger("msde")

T = TypeVar("T")


class Checkpoint(NamedTuple):
    """A checkpoint that is complete and undamaged."""

    folder: Path
    manifest: dict[str, Any]


def _gathered(
    module: nn.Module, modifier_rank: int | None = None
) -> contextlib.AbstractContextManager:
    """Gather partitioned weights for a while; what `modifier_rank` writes to them is kept."""
    partitioned = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=modifier_rank)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all weights and buffers on the CPU, gathered from all ranks under ZeRO-3.

    Every rank must call it.
    """
    with _gathered(module):
        return {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in module.state_dict().items()
        }


def export_weights(
    module: nn.Module,
    config: Config,
    folder: Path,
    origin: Sequence[str],
    write: Callable = save_weights,
) -> None:
    """Write model.safetensors, config.json and the card to `folder`; every rank must call it."""
    state = full_state(module)
    if dist.get_rank() == 0:
        write(state, config, folder, origin)
    dist.barrier()


def replace_weights(module: nn.Module, config: Config, folder: Path, origin: Sequence[str]) -> None:
    """Write a folder of weights in place of the one that is there; every rank must call it.

    Raises:
        DiskFull: there is no room for it; the one that is there is intact.
    """
    new, former = (folder.with_name(f".{folder.name}.{word}") for word in ("tmp", "former"))
    needed = 4 * sum(_size(p) for p in module.parameters())
    with undo_if_disk_full(folder, new, needed):
        export_weights(module, config, new, origin)
    if dist.get_rank() == 0:
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            os.replace(folder, former)
        os.replace(new, folder)
        shutil.rmtree(former, ignore_errors=True)
    dist.barrier()


def save(
    engine: deepspeed.DeepSpeedEngine,
    root: Path,
    config: Config,
    ema: ExponentialMovingAverage | None,
    facts: dict[str, Any],
    origin: Sequence[str] = (),
) -> None:
    """Write the checkpoint of a step; every rank must call it.

    It appears under its name in one move, after every file has been written and hashed.

    Args:
        facts: entries of the manifest: the `step`, the state of the run, and what a run that
            resumes is compared with.
        origin: what is known of the training, for the card.

    Raises:
        DiskFull: there is no room for it; nothing is left of it.
    """
    step = facts["step"]
    final, temporary = root / folder_name(step), root / f".{folder_name(step)}.tmp"
    # Float32: weights twice, the optimizer's weights and two moments, and the moving average.
    needed = 4 * sum(_size(p) for p in engine.module.parameters()) * (5 + (ema is not None))
    on_first_rank(lambda: make_room(root, final, needed))
    with undo_if_disk_full(final, temporary, needed):
        engine.save_checkpoint(str(root), tag=temporary.name, save_latest=False)
        export_weights(engine.module, config, temporary, origin, write_weights)  # `publish` seals
        if ema is not None:
            with ema.swapped_in():
                state = full_state(engine.module)
            if dist.get_rank() == 0:
                save_file(state, temporary / "ema.safetensors")
        dist.barrier()
        files = _hash_together(temporary)
    if dist.get_rank() == 0:
        manifest = {
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            **facts,
            "files": files,
        }
        publish(temporary, final, manifest)
    dist.barrier()


def _size(parameter: nn.Parameter) -> int:
    """Return the number of elements, of all ranks' parts under ZeRO-3."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _hash_together(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync and hash a folder's files, each by one of the ranks.

    The first rank lists them: on a network file system other ranks may not see all of them yet, and
    with lists of their own would leave files out.
    """
    names = on_first_rank(
        lambda: sorted(
            str(p.relative_to(folder))
            for p in folder.rglob("*")
            if p.is_file() and p.name != card.NAME
        )
    )
    own = hash_files(folder, names[dist.get_rank() :: dist.get_world_size()])
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return dict(sorted((name, facts) for part in parts for name, facts in part.items()))


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on the first rank and return its result, or raise its MsdeError, on all.

    So all ranks decide alike, although they may see different disks.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except MsdeError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find(root: Path, resume: str) -> Checkpoint | None:
    """Choose the checkpoint to go on from, the same on all ranks.

    Args:
        resume: `auto` takes the newest if there is one, `required` fails if there is none, `never`
            fails if there is one.

    Raises:
        NoCheckpoint: one is required and there is no valid one, or all of them are damaged.
        MsdeError: there are checkpoints that this run would mix with its own.
    """

    def choose() -> Checkpoint | None:
        present = bool(folders(root))
        if resume == "never" and present:
            raise MsdeError(
                f"{root} holds checkpoints of an earlier run; choose another --output, or go on "
                "with --resume auto"
            )
        found = newest_valid(root)
        if found is None and (present or resume == "required"):
            hint = "; move them away to start from step 0" if present else ""
            raise NoCheckpoint(f"{root} holds no valid checkpoint{newest_problem(root)}{hint}")
        return Checkpoint(*found) if found else None

    return on_first_rank(choose)


Changes = dict[str, tuple[Any, Any]]  # of settings: the checkpoint's value and this run's


def changed_settings(checkpoint: Checkpoint, config: Config) -> Changes:
    """Return the settings that differ from those of a checkpoint."""
    stored, own = leaves(from_dict(read_json(checkpoint.folder / "config.json"))), leaves(config)
    return {key: (stored[key], own[key]) for key in own if stored[key] != own[key]}


def check_compatible(
    checkpoint: Checkpoint, changes: Changes, world_size: int, zero_stage: int
) -> bool:
    """Check that a checkpoint can continue under this configuration, before anything is loaded.

    Returns:
        Whether it has to be converted first, because ZeRO has partitioned it for another number of
        ranks.

    Raises:
        MsdeError: naming the difference.
    """
    folder, manifest = checkpoint
    for key, (stored, own) in changes.items():
        change = f"{key} = {stored}, this run has {own}"
        other_network = key == "loss.coefficient_displacements" and bool(stored) != bool(own)
        if key.startswith("model.") or other_network:
            raise MsdeError(f"{folder} was written with {change}")
        log.warning("the checkpoint was written with %s", change)
    if manifest["zero_stage"] != zero_stage:
        raise MsdeError(
            f"{folder} was written under ZeRO {manifest['zero_stage']}, this run has ZeRO "
            f"{zero_stage}; resume with the stage it was written with, or start a new run from its "
            "weights with --init-from"
        )
    return zero_stage > 0 and manifest["world_size"] != world_size


def load(
    engine: deepspeed.DeepSpeedEngine,
    model: nn.Module,
    folder: Path,
    universal: bool,
    ema_decay: float,
) -> ExponentialMovingAverage | None:
    """Load a checkpoint into the engine; every rank must call it.

    Args:
        model: the model in the engine.
        universal: the checkpoint is to be converted for this number of ranks; the engine must have
            been built with `conversion.for_universal`.
        ema_decay: of the moving average of the weights; 0 for none.

    Returns:
        The moving average.

    Raises:
        NoCheckpoint: it cannot be loaded.
        MsdeError: it cannot be converted, for want of room for example; or a moving average is
            asked for, and it has none.
    """
    # The average first: it is read by way of the engine's weights.
    ema = _load_ema(engine, model, folder, ema_decay) if ema_decay else None
    source = folder
    if universal:
        source = folder.with_name(f".{folder.name}.universal")
        on_first_rank(lambda: conversion.convert(folder, source))
    groups = [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]
    with _own_clipping(engine):
        loaded, _ = engine.load_checkpoint(str(source.parent), tag=source.name)
    if loaded is None:
        raise NoCheckpoint(f"DeepSpeed could not load {folder}")
    place_step_counts(engine.optimizer)
    if universal:
        _restore_settings(engine.optimizer, groups)
        state = load_file(folder / MODEL)
        _load_untrained(model, state)
        _check_weights(model, state, folder)
        if dist.get_rank() == 0:
            shutil.rmtree(source, ignore_errors=True)
    log.info("resuming from %s", folder)
    return ema


@contextlib.contextmanager
def _own_clipping(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Clip gradients as this run is configured after loading, not as the run before was.

    ZeRO 1 and 2 of DeepSpeed 0.19.8 take the limit from the checkpoint, and refuse one that has a
    limit where the norm is not computed.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, "compute_grad_norm"):
        yield
        return
    computes = optimizer.compute_grad_norm
    optimizer.compute_grad_norm = True
    yield
    optimizer.compute_grad_norm = computes
    optimizer.clip_grad = engine.gradient_clipping()


def place_step_counts(optimizer: Any) -> None:
    """Give each partition of the weights a step count of its own, on the partition's device.

    DeepSpeed 0.19.8 loads converted checkpoints with step counts on the CPU, which the fused Adam
    of a GPU reads as its own memory. Under ZeRO-3 all partitions share one tensor, which Adam then
    increments once for each.
    """
    for parameter, state in getattr(optimizer, "optimizer", optimizer).state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device, torch.float32, copy=True)


def _restore_settings(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Give each group its settings back.

    DeepSpeed 0.19.8 loads converted checkpoints of ZeRO-3 with those of the first in all groups.
    """
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


@torch.no_grad()
def _load_untrained(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load buffers and frozen weights, which converted checkpoints may lack."""
    frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
    with _gathered(module, modifier_rank=0):
        for name, tensor in (*frozen, *module.named_buffers()):
            if name in state:
                tensor.copy_(state[name])


def _check_weights(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Check that a conversion has changed no weight or buffer.

    Raises:
        NoCheckpoint: naming the first tensor that differs.
    """
    for name, tensor in full_state(module).items():
        if not torch.equal(tensor, state[name]):
            raise NoCheckpoint(f"{folder} was converted for other ranks, but {name} differs")


def _load_ema(
    engine: deepspeed.DeepSpeedEngine, model: nn.Module, folder: Path, decay: float
) -> ExponentialMovingAverage:
    path = folder / "ema.safetensors"
    if not path.exists():
        raise MsdeError(f"{folder} holds no moving average of the weights; set run.ema_decay=0")
    state = load_file(path)
    with _gathered(model, modifier_rank=0), torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return ExponentialMovingAverage(engine, decay)
