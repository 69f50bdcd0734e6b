"""Checkpoints converted by DeepSpeed's own tool, which any number of ranks can load."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from msde.checkpoints.snapshots import FULL, disk_full, make_room
from msde.errors import MsdeError
from msde.files import read_folder_manifest

log = logging.getLogger("msde")

TOOL = "deepspeed.checkpoint.ds_to_universal"
# Times DeepSpeed's files: parts of all weights, the weights of the parts, the optimizer's state.
ROOM = 3


def for_universal(ds_config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an engine that loads a converted checkpoint."""
    return ds_config | {"checkpoint": ds_config.get("checkpoint", {}) | {"load_universal": True}}


def convert(folder: Path, target: Path) -> None:
    """Convert a checkpoint, so that any number of ranks can load it.

    Args:
        target: the folder to be made, beside the checkpoint; after an error it is gone.

    Raises:
        DiskFull: there is no room for it.
        MsdeError: the tool has failed.
    """
    needed = ROOM * sum(path.stat().st_size for path in folder.glob("*.pt"))
    make_room(target.parent, target, needed)
    command = [sys.executable, "-m", TOOL, "--input_folder", folder, "--output_folder", target]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        if any(text in done.stderr for text in FULL):
            raise disk_full(target.parent, target, needed)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        world_size = read_folder_manifest(folder)["world_size"]
        raise MsdeError(
            f"{folder} cannot be converted for another number of ranks: {last[:300]}; resume with "
            f"the {world_size} that it was written by"
        )
    log.info("%s converted for another number of ranks", folder)
