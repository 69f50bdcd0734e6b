"""DeepSpeed's own JSON: read, checked and completed for a world size.

DeepSpeed ignores a misspelt key without a word, so every key is compared with deepspeed_keys.json,
the keys of the release that setup.py names.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from msde.config import Config, nearest, read_json
from msde.errors import ErrorList, MsdeError

# Sections whose facts the configuration tree owns; no fact stands in two places.
OWNED_HERE = {
    "optimizer": "the optimizer is built from optim.*",
    "scheduler": "the learning-rate schedule is optim.schedule",
    "activation_checkpointing": "use run.activation_checkpointing",
    "compile": "use run.compile",
    "dataloader_drop_last": "no step drops molecules, see docs/data.md",
    "managed_gradient_accumulation": "an optimizer step has all slots of train_batch_size",
}
# Sections that break the model.
REFUSED = {
    "bf16": "it casts BatchNorm's parameters but not its buffers; use torch_autocast instead",
    "fp16": "it casts BatchNorm's parameters but not its buffers; use torch_autocast instead",
}


BFLOAT16 = ("bfloat16", "bf16", "torch.bfloat16")  # DeepSpeed's names of it
OFFLOAD_DEVICES = ("none", "cpu", "nvme")


def shipped_config(name: str) -> Path:
    """Return the path of a configuration that comes with the package."""
    return Path(str(resources.files("msde.ds_configs") / f"{name}.json"))


def load(path: Path, world_size: int, resumed_slots: int | None = None) -> dict[str, Any]:
    """Read a DeepSpeed configuration and fill in its batch sizes for `world_size` ranks.

    DeepSpeed counts slots: `train_batch_size` is the number of slots of an optimizer step. Where
    it is missing or "auto", each rank takes one slot for each accumulation step; a resumed run
    keeps the number of slots that it started with.

    Args:
        resumed_slots: slots of a step of the run that is resumed, if there is one.

    Raises:
        MsdeError: an unknown key, a value that cannot work, or slots that the ranks cannot share.
    """
    values = read_json(path)
    known = json.loads((resources.files("msde.config") / "deepspeed_keys.json").read_text())
    errors = ErrorList()
    _check_keys(values, known, str(path), errors)
    for section, reason in REFUSED.items():
        if (values.get(section) or {}).get("enabled"):
            errors.add(f"{path}: {section}.enabled cannot be used: {reason}")
    slots = values.get("train_batch_size", "auto")
    accumulation = values.get("gradient_accumulation_steps", "auto")
    if accumulation != "auto" and (type(accumulation) is not int or accumulation < 1):
        errors.add(
            f"{path}: gradient_accumulation_steps is {accumulation!r}, expected a positive number "
            "or 'auto'"
        )
        accumulation = "auto"
    advice = f"use a multiple of {world_size}, or ranks that divide the slots"
    if slots == "auto" and resumed_slots:
        slots = resumed_slots
        advice = "the run was started with them, so use ranks that divide them, or start a new run"
    elif slots == "auto":
        slots = world_size * (1 if accumulation == "auto" else accumulation)
    if type(slots) is not int or slots < 1:
        errors.add(f"{path}: train_batch_size is {slots!r}, expected a positive number")
    elif slots % world_size:
        errors.add(
            f"{path}: train_batch_size is {slots} slots, which {world_size} ranks cannot share "
            f"evenly; {advice}"
        )
    elif accumulation not in ("auto", slots // world_size):
        errors.add(
            f"{path}: gradient_accumulation_steps is {accumulation}, but {slots} slots "
            f"(train_batch_size) on {world_size} ranks need {slots // world_size}; write 'auto'"
        )
    _check_values(values, str(path), errors)
    if values.get("train_micro_batch_size_per_gpu", 1) not in (1, "auto"):
        errors.add(
            f"{path}: train_micro_batch_size_per_gpu must be 1, because a forward pass takes one "
            "slot; the size of a slot is data.molecules_per_slot"
        )
    errors.raise_if_any()
    _set_defaults(values)
    batch_sizes = {
        "train_batch_size": slots,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": slots // world_size,
    }
    return values | batch_sizes


def _set_defaults(values: dict[str, Any]) -> None:
    """Set what is not given where DeepSpeed's or torch's own default does harm."""
    values.setdefault("gradient_clipping", 0.0)  # DeepSpeed would clip at 1.0
    # Its timer would wait for all work of the GPU twice a slot.
    values.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    if in_bfloat16(values):  # without a type torch would take float16 on GPUs
        values["torch_autocast"]["dtype"] = "bfloat16"
        # Gradients of modules in the list, by default of nn.Linear, would be reduced in bfloat16.
        values["torch_autocast"].setdefault("lower_precision_safe_modules", [])
    zero = values.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]  # as DeepSpeed does


def check_together(config: Config, values: dict[str, Any]) -> None:
    """Check that a configuration and DeepSpeed's fit together.

    Raises:
        MsdeError: they exclude each other.
    """
    for name in config.run.repeating:
        if zero_stage(values) == 3:
            raise MsdeError(
                f"run.{name} works with ZeRO 0 to 2 only; ZeRO 3 gathers weights within the step"
            )


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return values.get("zero_optimization", {}).get("stage", 0)


def in_bfloat16(values: dict[str, Any]) -> bool:
    """Return whether a DeepSpeed configuration computes matrix products in bfloat16."""
    return bool(values.get("torch_autocast", {}).get("enabled"))


def _check_values(values: dict[str, Any], where: str, errors: ErrorList) -> None:
    """Check those values that DeepSpeed would refuse late, or not at all."""
    stage, clipping = zero_stage(values), values.get("gradient_clipping", 0.0)
    if type(stage) is not int or stage not in range(4):
        errors.add(f"{where}: zero_optimization.stage is {stage!r}, expected 0 to 3")
    if type(clipping) not in (int, float) or not 0 <= clipping < math.inf:
        errors.add(
            f"{where}: gradient_clipping is {clipping!r}, expected a number, 0 for no clipping"
        )
    dtype = values.get("torch_autocast", {}).get("dtype", "bfloat16")
    if in_bfloat16(values) and dtype not in BFLOAT16:
        errors.add(f"{where}: torch_autocast.dtype is {dtype!r}, expected 'bfloat16'")
    for name in ("offload_optimizer", "offload_param"):
        offload = values.get("zero_optimization", {}).get(name) or {}
        device = offload.get("device", "none")
        if device not in OFFLOAD_DEVICES:
            errors.add(
                f"{where}: zero_optimization.{name}.device is {device!r}, expected one of "
                f"{', '.join(OFFLOAD_DEVICES)}"
            )
        elif name == "offload_param" and device != "none" and stage != 3:
            errors.add(f"{where}: zero_optimization.offload_param needs stage 3, not {stage}")


def _check_keys(
    values: dict[str, Any], known: dict[str, Any], where: str, errors: ErrorList
) -> None:
    for key, value in values.items():
        if key in OWNED_HERE:
            errors.add(f"{where}: {key!r} does not belong here: {OWNED_HERE[key]}")
        elif key not in known:
            errors.add(f"{where}: unknown key {key!r}{nearest(key, known)}")
        elif known[key] and not isinstance(value, dict):
            errors.add(f"{where}: {key} is {value!r}, expected a JSON object")
            errors.raise_if_any()  # the keys below it cannot be checked
        elif known[key]:
            _check_keys(value, known[key], f"{where}: {key}", errors)
