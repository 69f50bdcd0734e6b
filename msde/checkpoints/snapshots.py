"""Folders of checkpoints: written atomically, verified, and removed when they are old.

    step-000001000/
        MANIFEST.json       written last: step, position in the data, sizes and hashes of all files
    damaged-step-000000900/ skipped because of a damaged file, and renamed
    .step-000001100.tmp/    unfinished; writing the next checkpoint removes it

A folder without MANIFEST.json is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from msde.errors import DataDamaged, DiskFull
from msde.files import file_problem, read_folder_manifest, sync, write_folder_manifest

log = logging.getLogger("msde")

FORMAT = "msde-checkpoint/2"
# In errors of a full disk: torch and safetensors have their own, some without the cause.
FULL = ("PytorchStreamWriter", "No space left", "unexpected pos")
RENAMED = {"left_out_in_a_row": "skipped_in_a_row"}  # manifests' keys: former and present name


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of a step; names sort by step."""
    return f"step-{step:09d}"


def folders(root: Path) -> list[Path]:
    """Return the checkpoints in a folder; copies under other names are no checkpoints."""
    return [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name)]


def make_room(root: Path, final: Path, needed: int) -> None:
    """Remove the leftovers of crashed runs and check that the disk has room for a checkpoint.

    Raises:
        DiskFull: it has not.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise disk_full(root, final, needed)


def disk_full(root: Path, final: Path, needed: int) -> DiskFull:
    """Return the error that says how many bytes a checkpoint needs, and how many are free."""
    free = shutil.disk_usage(root).free
    return DiskFull(
        f"disk full: {final} needs {needed:,} bytes, {free:,} are free; earlier checkpoints are "
        "intact: free some space and resume"
    )


@contextlib.contextmanager
def undo_if_disk_full(final: Path, temporary: Path, needed: int) -> Iterator[None]:
    """Remove the files written inside if the disk fills up, although it had room before.

    Raises:
        DiskFull: the disk is full; the other ranks notice when this one ends.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or any(text in str(error) for text in FULL)
        # Another rank may have noticed first and removed the folder.
        missing = isinstance(error, FileNotFoundError) or "does not exist" in str(error)
        if not full and not (missing and not temporary.exists()):
            raise
        explained = disk_full(final.parent, final, needed)
        shutil.rmtree(temporary, ignore_errors=True)
        raise explained from error


def publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, which completes a folder, and rename the folder in one move."""
    write_folder_manifest(temporary, {"format": FORMAT, **manifest})
    os.replace(temporary, final)
    sync(final.parent)
    log.info("checkpoint %s", final)


def prune(root: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove old checkpoints, once a newer one is complete.

    Args:
        keep_last: number of checkpoints to keep, the newest included.
        keep_every: checkpoints of steps that it divides are kept, too.
    """
    steps = sorted(int(path.name.removeprefix("step-")) for path in folders(root))
    for old in steps[:-keep_last]:
        if not keep_every or old % keep_every:
            # Renamed first: a crash must not leave half a checkpoint under a checkpoint's name.
            renamed = root / f".{folder_name(old)}.old"
            os.replace(root / folder_name(old), renamed)
            shutil.rmtree(renamed, ignore_errors=True)


def newest_valid(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete, undamaged checkpoint and its manifest, or None.

    A damaged one is skipped with a warning that names the damaged file. If there is an older valid
    one, it is renamed, so that `prune` does not count it.
    """
    damaged: list[Path] = []
    for folder in sorted(folders(root), reverse=True):
        problem, manifest = _verify(folder)
        if problem is None:
            for other in damaged:
                shutil.rmtree(renamed := root / f"damaged-{other.name}", ignore_errors=True)
                os.replace(other, renamed)
            return folder, manifest
        log.warning("skipping checkpoint %s: %s", folder, problem)
        damaged.append(folder)
    return None


def newest_problem(root: Path) -> str:
    """Return what is wrong with the newest checkpoint, in brackets; "" if nothing or none is."""
    newest = max(folders(root), default=None)
    problem = None if newest is None else _verify(newest)[0]
    return f" ({newest.name}: {problem})" if newest and problem else ""


def newest_manifest(root: Path) -> dict[str, Any]:
    """Return the newest undamaged manifest without verifying its files, or an empty one."""
    for folder in sorted(folders(root), reverse=True):
        problem, manifest = _read_manifest(folder)
        if problem is None:
            return manifest
    return {}


def _verify(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a checkpoint, or None, and its manifest."""
    problem, manifest = _read_manifest(folder)
    if problem is not None:
        return problem, {}
    for name, facts in manifest["files"].items():
        problem = file_problem(folder, name, facts)
        if problem is not None:
            return problem, {}
    return None, manifest


def _read_manifest(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a manifest, or None, and the manifest."""
    try:
        manifest = read_folder_manifest(folder)
        found = manifest.get("format")
    except DataDamaged as error:
        return str(error), {}
    if found != FORMAT:
        return f"its format is {found!r}, this release reads {FORMAT!r}", {}
    return None, {RENAMED.get(key, key): value for key, value in manifest.items()}
