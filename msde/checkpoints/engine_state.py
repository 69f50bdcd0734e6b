"""Checkpoints that are complete or not there, and weights for use elsewhere.

    checkpoints/step-000001000/
        MANIFEST.json       see `snapshots`
        model.safetensors   the weights        ema.safetensors   their moving average, if kept
        config.json         the run's configuration
        *.pt                DeepSpeed's state

DeepSpeed's files are pickles: only files that carry the hashes of a run's own manifest are loaded.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msde.checkpoints.snapshots import (
    folder_name,
    full_disk_undoes,
    hash_files,
    make_room,
    newest_valid,
    publish,
)
from msde.checkpoints.weights import save_weights
from msde.config import Config, from_dict, leaves, read_json
from msde.errors import MsdeError, NoCheckpoint
from msde.model.ema import ExponentialMovingAverage

log = logging.getLogger("msde")

T = TypeVar("T")


def _gathered(
    module: nn.Module, modifier_rank: int | None = None
) -> contextlib.AbstractContextManager:
    """Make all weights whole for a while; under ZeRO-3 what `modifier_rank` writes is kept."""
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


def export_weights(module: nn.Module, config: Config, folder: Path) -> None:
    """Write model.safetensors and config.json to `folder`; every rank must call it."""
    state = full_state(module)
    if dist.get_rank() == 0:
        save_weights(state, config, folder)
    dist.barrier()


def save(
    engine: deepspeed.DeepSpeedEngine,
    root: Path,
    step: int,
    config: Config,
    ema: ExponentialMovingAverage | None,
    facts: dict[str, Any],
) -> None:
    """Write the checkpoint of a step; every rank must call it.

    It appears under its name in one move, after every file has been written and hashed.

    Args:
        facts: what the run needs to go on and what a later run is held against; for the manifest.

    Raises:
        DiskFull: there is no room for it; nothing has been written.
    """
    final, temporary = root / folder_name(step), root / f".{folder_name(step)}.tmp"
    # Weights twice, the optimizer's three, and the moving average, all float32.
    needed = 4 * sum(_size(p) for p in engine.module.parameters()) * (5 + (ema is not None))
    on_first_rank(lambda: make_room(root, final, needed))
    with full_disk_undoes(final, temporary, needed):
        engine.save_checkpoint(str(root), tag=temporary.name, save_latest=False)
        export_weights(engine.module, config, temporary)
        if ema is not None:
            with ema.swapped_in():
                state = full_state(engine.module)
            if dist.get_rank() == 0:
                save_file(state, temporary / "ema.safetensors")
        dist.barrier()
        files = _hash_together(temporary)
    if dist.get_rank() == 0:
        manifest = {
            "step": step,
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            **facts,
            "files": files,
        }
        publish(temporary, final, manifest)
    dist.barrier()


def _size(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _hash_together(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync and hash a folder's files, shared by the ranks."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    mine = hash_files(folder, names[dist.get_rank() :: dist.get_world_size()])
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return dict(sorted((name, facts) for part in parts for name, facts in part.items()))


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on the first rank and give its result, or its MsdeError, to all.

    So ranks that see different disks still do the same.
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


def find(root: Path, resume: str) -> tuple[Path, dict[str, Any]] | None:
    """Choose the checkpoint to go on from, the same on all ranks.

    Args:
        resume: `auto` takes the newest if there is one, `required` insists on one, `never` insists
            that there is none.

    Raises:
        NoCheckpoint: one is required and there is no valid one.
        MsdeError: there are checkpoints that this run would mix with its own.
    """

    def choose() -> tuple[Path, dict[str, Any]] | None:
        present = any(root.glob("step-*"))
        if resume == "never" and present:
            raise MsdeError(
                f"{root} holds checkpoints of an earlier run; choose another --output, or go on "
                "with --resume auto"
            )
        found = newest_valid(root)
        if found is None and resume == "required":
            raise NoCheckpoint(f"{root} holds no valid checkpoint, and --resume required was given")
        if found is None and present:
            raise NoCheckpoint(
                f"{root} holds checkpoints, but none is valid; move them away to start from step 0"
            )
        return found

    return on_first_rank(choose)


def check_compatible(
    folder: Path, manifest: dict[str, Any], config: Config, world_size: int, zero_stage: int
) -> bool:
    """Check that a checkpoint can continue under this configuration, before anything is loaded.

    Returns:
        Whether it has to be converted first, because ZeRO has cut it for another number of ranks.

    Raises:
        MsdeError: naming what differs.
    """
    stored, ours = leaves(from_dict(read_json(folder / "config.json"))), leaves(config)
    for key in (key for key in ours if stored[key] != ours[key]):
        change = f"{key} = {stored[key]}, this run has {ours[key]}"
        if key.startswith("model."):
            raise MsdeError(f"{folder} was written with {change}")
        log.warning("the checkpoint was written with %s", change)
    if manifest["zero_stage"] != zero_stage:
        raise MsdeError(
            f"{folder} was written under ZeRO {manifest['zero_stage']}, this run has ZeRO "
            f"{zero_stage}; resume with what it was written with, or start a new run from its "
            "weights with --init-from"
        )
    return zero_stage > 0 and manifest["world_size"] != world_size


def for_universal(ds_config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an engine that loads a converted checkpoint."""
    return ds_config | {"checkpoint": ds_config.get("checkpoint", {}) | {"load_universal": True}}


def load(engine: deepspeed.DeepSpeedEngine, folder: Path, universal: bool) -> None:
    """Load a checkpoint chosen by `find` into the engine; every rank must call it.

    Args:
        universal: it was written by another number of ranks; the engine was made for that.
    """
    source = folder
    if universal:
        source = folder.with_name(f".{folder.name}.universal")
        on_first_rank(lambda: _convert(folder, source))
    groups = [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(source.parent), tag=source.name)
    if loaded is None:
        raise NoCheckpoint(f"DeepSpeed could not load {folder}")
    if universal:
        _repair(engine.optimizer, groups)
        state = load_file(folder / "model.safetensors")
        _load_what_is_not_trained(engine.module, state)
        _insist_on(engine.module, state, folder)
        if dist.get_rank() == 0:
            shutil.rmtree(source, ignore_errors=True)


def _convert(folder: Path, to: Path) -> None:
    """Let DeepSpeed's own tool convert a checkpoint so that any number of ranks can load it."""
    shutil.rmtree(to, ignore_errors=True)
    module = "deepspeed.checkpoint.ds_to_universal"
    command = [sys.executable, "-m", module, "--input_folder", folder, "--output_folder", to]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NoCheckpoint(f"{folder} cannot be converted for another number of ranks: {last}")
    log.info("%s converted for another number of ranks", folder)


def _repair(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Give every group its own settings, and every part of the weights its own count of steps.

    DeepSpeed 0.19.8 loads converted checkpoints of ZeRO-3 with the settings of the first group for
    all of them, and with one count for all parts, which Adam counts up once for each.
    """
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


@torch.no_grad()
def _load_what_is_not_trained(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load buffers and frozen weights, which converted checkpoints may lack."""
    frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
    with _gathered(module, modifier_rank=0):
        for name, tensor in (*frozen, *module.named_buffers()):
            if name in state:
                tensor.copy_(state[name])


def _insist_on(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Check that a conversion has lost nothing of the weights and buffers.

    Raises:
        NoCheckpoint: it has; the first tensor that differs is named.
    """
    for name, tensor in full_state(module).items():
        if not torch.equal(tensor, state[name]):
            raise NoCheckpoint(f"{folder} was converted for other ranks, but {name} differs")


def load_ema(
    engine: deepspeed.DeepSpeedEngine, folder: Path, decay: float
) -> ExponentialMovingAverage:
    """Restore the moving average by way of the engine's weights, so load those afterwards."""
    path = folder / "ema.safetensors"
    if not path.exists():
        raise MsdeError(f"{folder} holds no moving average of the weights; set run.ema_decay=0")
    state = load_file(path)
    with _gathered(engine.module, modifier_rank=0), torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            parameter.copy_(state[name])
    return ExponentialMovingAverage(engine, decay)
