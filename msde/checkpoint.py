"""Checkpoints that are complete or not there, and weights for use elsewhere.

    checkpoints/step-000001000/
        MANIFEST.json       written last: step, position in the data, sizes and hashes of all files
        model.safetensors   the weights        ema.safetensors   their moving average, if kept
        config.json         the run's configuration
        *.pt                DeepSpeed's state

A folder without MANIFEST.json is not a checkpoint. DeepSpeed's files are pickles: only files that
carry the hashes of a run's own manifest are loaded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msde.config import Config, from_dict, leaves, read_json
from msde.ema import ExponentialMovingAverage
from msde.errors import MsdeError, NoCheckpoint
from msde.files import file_sha256
from msde.weights import save_weights

log = logging.getLogger("msde")

FORMAT = "msde-checkpoint/2"
MANIFEST = "MANIFEST.json"
T = TypeVar("T")


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of a step; names sort by step."""
    return f"step-{step:09d}"


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
    """
    final, temporary = root / folder_name(step), root / f".{folder_name(step)}.tmp"
    if dist.get_rank() == 0:
        root.mkdir(parents=True, exist_ok=True)
        for stale in (final, temporary):
            shutil.rmtree(stale, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(root), tag=temporary.name, save_latest=False)
    export_weights(engine.module, config, temporary)
    if ema is not None:
        with ema.swapped_in():
            state = full_state(engine.module)
        if dist.get_rank() == 0:
            save_file(state, temporary / "ema.safetensors")
    dist.barrier()
    if dist.get_rank() == 0:
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in files:
            _sync(path)
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            **facts,
            "files": {
                str(path.relative_to(temporary)): {
                    "bytes": path.stat().st_size,
                    "sha256": file_sha256(path),
                }
                for path in files
            },
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _sync(temporary / MANIFEST)
        os.replace(temporary, final)
        _sync(root)
        log.info("checkpoint %s", final)
    dist.barrier()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_valid(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete, undamaged checkpoint and its manifest, or None.

    A damaged one is passed over with a warning that names what is wrong.
    """
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem, manifest = _verify(folder)
        if problem is None:
            return folder, manifest
        log.warning("passing over checkpoint %s: %s", folder, problem)
    return None


def _verify(folder: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, files = manifest["format"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})", {}
    if found != FORMAT:
        return f"its format is {found!r}, this release reads {FORMAT!r}", {}
    for name, facts in files.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing", {}
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {facts['bytes']}", {}
        if file_sha256(path) != facts["sha256"]:
            return f"{name} is damaged (SHA-256 differs)", {}
    return None, manifest


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
) -> None:
    """Check that a checkpoint can continue under this configuration, before anything is loaded.

    Raises:
        MsdeError: naming what differs.
    """
    stored, ours = leaves(from_dict(read_json(folder / "config.json"))), leaves(config)
    for key in (key for key in ours if stored[key] != ours[key]):
        change = f"{key} = {stored[key]}, this run has {ours[key]}"
        if key.startswith("model."):
            raise MsdeError(f"{folder} was written with {change}")
        log.warning("the checkpoint was written with %s", change)
    written = (manifest["world_size"], manifest["zero_stage"])
    if manifest["zero_stage"] != zero_stage or (zero_stage > 0 and written[0] != world_size):
        raise MsdeError(
            f"{folder} was written by {written[0]} ranks under ZeRO {written[1]}, this run has "
            f"{world_size} ranks under ZeRO {zero_stage}; resume with what it was written with"
        )


def load(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Load a checkpoint chosen by `find` into the engine; every rank must call it."""
    loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if loaded is None:
        raise NoCheckpoint(f"DeepSpeed could not load {folder}")


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
