"""From the options of a command to a run: every check that is cheap, then the training.

Torch, DeepSpeed and the model are imported once the checks before them have passed: that takes
seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msde.checkpoints.snapshots import newest_manifest
from msde.cluster import ranks
from msde.cluster.launcher import Launcher
from msde.config import Config, deepspeed, make_config, to_dict
from msde.data.manifest import check_present, root_and_weight
from msde.errors import ErrorList, MsdeError, require
from msde.files import check_file
from msde.monitor.trackers import check_installed

log = logging.getLogger("msde")

# Settings of the loss that weights are made for: the scale of a score, and whether a head exists.
OF_THE_MODEL = ("anneal_power", "coefficient_displacements")


def resolve(
    preset: str, file: Path | None, overrides: Sequence[str], init_from: Path | None
) -> Config:
    """Build the configuration; with `init_from` the model is that of the weights there.

    Of `init_from` the model and what belongs to it override the preset, and are overridden by the
    file and the overrides.
    """
    over = None
    if init_from is not None:
        from msde.checkpoints.weights import find_weights, read_config

        stored = read_config(find_weights(init_from))
        over = {
            "model": to_dict(stored.model),
            "loss": {name: getattr(stored.loss, name) for name in OF_THE_MODEL},
        }
    return make_config(preset, file, overrides, over)


def fitting_weights(config: Config, init_from: Path) -> Path:
    """Return the folder of the weights that `init_from` stands for.

    Raises:
        MsdeError: there are none, or they are of another model.
    """
    from msde.checkpoints.weights import check_start, find_weights

    folder = find_weights(init_from)
    check_start(config, folder)
    return folder


def set_up_torch() -> bool:
    """Import torch after what it reads is set, and return whether there is a GPU."""
    import torch

    from msde.cluster import process

    process.prepare()
    on_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    return on_gpu


def check_data(data: Sequence[str], config: Config | None) -> None:
    """Check that there are data, before any model is built.

    Args:
        config: None if it has errors of its own; then data that must be copied are not checked.

    Raises:
        MsdeError: a data set cannot be used; all of them are listed.
    """
    errors = ErrorList()
    for item in data:
        with errors.collect():
            check_present(root_and_weight(item)[0])
    errors.raise_if_any()
    log.info("checking options and data; loading torch for it takes a while")
    set_up_torch()
    from msde.training.plan import open_data

    for item in data:
        if config is None and "://" in item:
            continue
        with errors.collect():
            open_data([item], config.data.stage_dir if config else None)
    errors.raise_if_any()


def compile_ahead() -> None:
    """Compile the C++ ops while DeepSpeed is loaded; on a new machine that takes half a minute."""
    from msde.ops.dispatch import available

    threading.Thread(target=available, daemon=True).start()


def check_by_deepspeed(config: Config, values: dict[str, Any]) -> None:
    """Load DeepSpeed, which takes seconds, and let it check its section of ZeRO.

    Raises:
        MsdeError: it refuses a value, or the section does not go with the configuration.
    """
    deepspeed.check_together(config, values)
    log.info("loading DeepSpeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**values.get("zero_optimization", {}))
    except ValidationError as error:
        found = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise MsdeError(f"DeepSpeed refuses zero_optimization: {'; '.join(found)}") from None


def earlier_slots(output: Path, resume: str) -> int | None:
    """Return the number of slots a step of the run that is resumed, or None if none is."""
    if resume == "never":
        return None
    return newest_manifest(output / "checkpoints").get("slots")


def describe(
    config: Config, ds_config: dict[str, Any], data: Sequence[str], world_size: int
) -> str:
    """Return the resolved configuration and a description of the run with it, as text."""
    import torch

    from msde.model import MoleculeSDE
    from msde.training.memory import state_memory
    from msde.training.plan import make_plan

    plan = make_plan(config, data, ds_config["train_batch_size"])
    with torch.device("meta"):
        model = MoleculeSDE(config)
    count = sum(p.numel() for p in model.parameters())
    states = state_memory(count, world_size, ds_config)
    return (
        f"{json.dumps({'config': to_dict(config), 'deepspeed': ds_config}, indent=2)}\n"
        f"model: {count:,} parameters; states without activations take, of each rank, "
        f"{states.device / 1e9:.2f} GB on the device and {states.host / 1e9:.2f} GB on the host\n"
        f"{plan.describe()}\n"
    )


def _of_the_run(output: Path, resume: str, init_from: Path) -> Path:
    """Return the folder of weights that has the run's model: its own, if it is resumed."""
    if resume == "never" or not newest_manifest(output / "checkpoints"):
        return init_from
    log.info("--init-from is not used: the run in %s goes on from its own checkpoint", output)
    return output


def _set_up_log(rank: int) -> None:
    logging.basicConfig(format=f"[rank {rank}] %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)


def start(
    launcher: Launcher,
    data: Sequence[str],
    output: Path,
    *,
    preset: str = "base",
    config: Path | None = None,
    overrides: Sequence[str] = (),
    deepspeed_config: Path | None = None,
    init_from: Path | None = None,
    resume: str = "auto",
    save_every: int | None = None,
    profile: int = 0,
    dry_run: bool = False,
) -> None:
    """Check the options of launch/pretrain.py, then pretrain; every rank calls it.

    Raises:
        MsdeError: an option or the data cannot be used; all that is wrong is listed.
    """
    rank, world_size = ranks.rank(), ranks.world_size()
    _set_up_log(rank)
    if save_every is not None:
        overrides = [*overrides, f"run.save_every={save_every}"]
    errors, resolved = ErrorList(), None
    init_from = init_from and _of_the_run(output, resume, init_from)
    with errors.collect():
        require({"--profile must be at least 0": profile >= 0})
    for given in filter(None, (config, deepspeed_config)):
        with errors.collect():
            check_file(given)  # of a run's folder
    with errors.collect():
        resolved = resolve(preset, config, overrides, init_from)
    ds_path, slots = deepspeed_config or deepspeed.shipped_config("cpu_debug"), None
    with errors.collect():
        slots = earlier_slots(output, resume)
        ds_config = deepspeed.load(ds_path, world_size, slots)
    with errors.collect():
        check_data(data, resolved)
    errors.raise_if_any()
    on_gpu = set_up_torch()
    if on_gpu and deepspeed_config is None:
        ds_path = deepspeed.shipped_config("zero1")
        ds_config = deepspeed.load(ds_path, world_size, slots)
    assert resolved is not None  # or there would have been an error
    check_installed(resolved.run.tracker)
    init_from = init_from and fitting_weights(resolved, init_from)
    if not on_gpu and not dry_run:
        compile_ahead()
    check_by_deepspeed(resolved, ds_config)
    if dry_run:
        sys.stdout.write("" if rank else describe(resolved, ds_config, data, world_size))
        return
    log.info("DeepSpeed configuration: %s", ds_path)
    from msde.training.loop import pretrain

    pretrain(resolved, data, output, ds_config, resume, init_from, profile, launcher)
