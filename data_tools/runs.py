"""Checks of what training writes: runs, checkpoints and weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from msde.cluster.preemption import DONE, PREEMPTED
from msde.errors import DataDamaged
from msde.files import MANIFEST, MODEL, file_problem, read_folder_manifest, unsealed

log = logging.getLogger("msde")


def is_run(root: Path) -> bool:
    """Return whether a folder is that of a run, a checkpoint or weights."""
    return (root / MANIFEST).is_file() or (root / "checkpoints").is_dir()


def problems_of_run(root: Path) -> Iterator[str]:
    """Yield a line for each file of a run, a checkpoint or weights that is not as it was written.

    Not checked are DeepSpeed's scripts `zero_to_*.py`, which nothing here runs.
    """
    for path in sorted(root.rglob(MANIFEST)):
        try:
            manifest = read_folder_manifest(path.parent)
        except DataDamaged as error:
            yield f"{path.parent}: {error}"
            continue
        for name, facts in manifest["files"].items():
            problem = file_problem(path.parent, name, facts)
            if problem:
                yield f"{path.parent}: {problem}"
    for folder in sorted((root / "checkpoints").glob("step-*")):
        if not (folder / MANIFEST).exists():
            yield f"{folder} has no {MANIFEST}"
    checkpoints = root / "checkpoints"
    for path in sorted(root.rglob(MODEL)):
        if checkpoints not in path.parents and not (path.parent / MANIFEST).exists():
            log.warning("%s has no %s: it cannot be checked", path.parent, MANIFEST)
    for path in (root / DONE, root / PREEMPTED):
        text = path.read_bytes().decode(errors="replace") if path.exists() else ""
        if text and not text.startswith('{"step"'):  # of earlier releases
            try:
                unsealed(text)
            except ValueError as error:
                yield f"{path} is damaged ({error})"
    yield from _problems_of_metrics(root)


def _problems_of_metrics(root: Path) -> Iterator[str]:
    # They take seconds to import, with torch.
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    from msde.monitor.writer import damaged_lines

    for name in ("metrics.jsonl", "events.jsonl"):
        for number in damaged_lines(root / name):
            yield f"{root / name}, line {number} is damaged (CRC32 differs)"
    for path in sorted((root / "tensorboard").glob("events.*")):
        reader = PyRecordReader_New(str(path))
        try:
            while True:
                reader.GetNext()
        except errors.OutOfRangeError:
            pass  # its end
        except errors.DataLossError:
            yield f"{path} is damaged (CRC32 of a record differs)"
