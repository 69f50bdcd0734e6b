"""Folders of checkpoints on the disk: complete or not there, undamaged or passed over.

    step-000001000/
        MANIFEST.json       written last: step, position in the data, sizes and hashes of all files
    damaged-step-000000900/ passed over and put aside
    .step-000001100.tmp/    unfinished: removed by the next one

A folder without MANIFEST.json is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from msde.errors import DiskFull
from msde.files import file_sha256, sync, write_atomically

log = logging.getLogger("msde")

FORMAT = "msde-checkpoint/2"
MANIFEST = "MANIFEST.json"
RENAMED = {"left_out_in_a_row": "skipped_in_a_row"}  # keys of manifests: as once written, as read


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of a step; names sort by step."""
    return f"step-{step:09d}"


def make_room(root: Path, final: Path, needed: int) -> None:
    """Remove what crashed runs have left and check that the disk has room for a checkpoint."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise _disk_full(root, final, needed)


def _disk_full(root: Path, final: Path, needed: int) -> DiskFull:
    free = shutil.disk_usage(root).free
    return DiskFull(
        f"disk full: {final} needs {needed:,} bytes, {free:,} are free; the checkpoints before "
        "it are as they were: free some, and resume"
    )


@contextlib.contextmanager
def undo_if_disk_full(final: Path, temporary: Path, needed: int) -> Iterator[None]:
    """Tell of a disk that fills up although it had room, and remove what has been written.

    Raises:
        DiskFull: it did; the other ranks learn of it when this one ends.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors have errors of their own, some of which do not name the reason.
        told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        texts = ("PytorchStreamWriter", "No space left", "unexpected pos")
        told = told or any(text in str(error) for text in texts)
        # Another rank may have been told first, and have removed the folder.
        missing = isinstance(error, FileNotFoundError) or "does not exist" in str(error)
        if not told and not (missing and not temporary.exists()):
            raise
        full = _disk_full(final.parent, final, needed)
        shutil.rmtree(temporary, ignore_errors=True)
        raise full from error


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Bring files to the disk and return their sizes and hashes."""
    facts = {}
    for name in names:
        path = folder / name
        sync(path)
        facts[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return facts


def _own_digest(manifest: dict[str, Any]) -> str:
    """Hash a manifest without its own hash."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Complete a folder with its manifest and let it appear under its name in one move."""
    manifest = {"format": FORMAT, **manifest}
    manifest["sha256"] = _own_digest(manifest)
    text = json.dumps(manifest, indent=1) + "\n"
    write_atomically(temporary / MANIFEST, lambda path: path.write_text(text))
    os.replace(temporary, final)
    sync(final.parent)
    log.info("checkpoint %s", final)


def prune(root: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove all checkpoints but the last and every m-th; the newest is complete.

    Args:
        keep_last: how many to keep, the newest included.
        keep_every: keep those whose step it divides, too.
    """
    steps = sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))
    for old in steps[:-keep_last]:
        if not keep_every or old % keep_every:
            # Under a name that is no checkpoint's: half of one must not be taken for one.
            going = root / f".{folder_name(old)}.old"
            os.replace(root / folder_name(old), going)
            shutil.rmtree(going, ignore_errors=True)


def newest_valid(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete, undamaged checkpoint and its manifest, or None.

    A damaged one is passed over with a warning that names what is wrong, and put aside if there is
    an older one: it must not count among those that are kept.
    """
    damaged: list[Path] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem, manifest = _verify(folder)
        if problem is None:
            for other in damaged:
                shutil.rmtree(aside := root / f"damaged-{other.name}", ignore_errors=True)
                os.replace(other, aside)
            return folder, manifest
        log.warning("passing over checkpoint %s: %s", folder, problem)
        damaged.append(folder)
    return None


def newest_manifest(root: Path) -> dict[str, Any]:
    """Return the newest manifest that is undamaged, without a look at its files; empty for none."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem, manifest = _read_manifest(folder)
        if problem is None:
            return manifest
    return {}


def _verify(folder: Path) -> tuple[str | None, dict[str, Any]]:
    problem, manifest = _read_manifest(folder)
    if problem is not None:
        return problem, {}
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing", {}
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {facts['bytes']}", {}
        if file_sha256(path) != facts["sha256"]:
            return f"{name} is damaged (SHA-256 differs)", {}
    return None, manifest


def _read_manifest(folder: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, _ = manifest["format"], manifest["files"]  # both must be there
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})", {}
    if manifest.get("sha256") != _own_digest(manifest):
        return f"{MANIFEST} is damaged (SHA-256 differs)", {}
    if found != FORMAT:
        return f"its format is {found!r}, this release reads {FORMAT!r}", {}
    return None, {RENAMED.get(key, key): value for key, value in manifest.items()}
