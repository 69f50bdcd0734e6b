"""A suite of fine-tunings on files: see `msde.downstream.plan` and, for the folders, `suite`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from msde.data.shards import ShardDataset
from msde.downstream.labels import read_task_data
from msde.downstream.overlap import blocks_of, blocks_of_data_sets, overlapping
from msde.downstream.plan import Design, Plan, read_plan
from msde.downstream.report import Rows, write_tables
from msde.downstream.settings import make_settings
from msde.downstream.statistics import DRAWS
from msde.downstream.suite import execute
from msde.errors import ErrorList, MsdeError
from msde.files import make_output, write_atomically, write_json

from ..pipeline.executors import open_workers, worker_failure_as_error
from .finetuning import task_shards

log = logging.getLogger("msde")


def run_suite(
    plan: Path,
    data: Path,
    checkpoints: dict[str, Path],
    output: Path,
    pretraining: Sequence[Path] = (),
    processes: int = 1,
    draws: int = DRAWS,
    executor: str = "local",
) -> None:
    """Run what is not done of a plan; write each run's rows as they come, then the comparisons.

    A run that cannot be done does not keep the others from being done and compared.

    Args:
        data: the folder that the plan's files lie in.
        checkpoints: by name; random weights take the network of the first.
        pretraining: folders of shards that the checkpoints were trained on, to count overlaps.
        processes: runs at a time, of `local`.
        draws: of the bootstrap.
        executor: see `open_workers`; workers on other machines have to see the same folders.

    Raises:
        MsdeError: the plan is wrong, `output` holds another plan, or, at the end, runs failed.
    """
    read = read_plan(plan, checkpoints)
    if processes < 1:
        raise MsdeError(f"--processes is {processes}, expected at least 1")
    make_output(output)
    _keep_plan(plan, output / "plan.json")
    shards = {design.name: _shards(design, data, output / "data") for design in read.designs}
    overlaps = _overlaps(read, shards, output / "overlap.json", pretraining)
    runs, rows, failed = list(read.runs()), Rows(output, read), ErrorList()
    arguments = [(r, shards[r.design.name], checkpoints, output / "runs", read.seeds) for r in runs]
    # Local processes are spawned: threads of torch do not live in a fork.
    with open_workers(executor, processes, "spawn") as workers:
        submit = workers.executor.submit if workers.executor else None
        results = [
            submit(_execute_alone, number, *given) if submit else None
            for number, given in enumerate(arguments)
        ]
        for run, given, result in zip(runs, arguments, results, strict=True):
            try:
                with worker_failure_as_error(f"in {run.folder}"):
                    result.result() if result else execute(*given)
            except MsdeError as error:
                if isinstance(error.__cause__, BrokenExecutor):
                    raise  # no worker is left
                failed.add(f"{run.folder}: {error}")
                log.warning("failed: %s: %s", run.folder, error)
                continue
            log.info("done: %s", run.folder)
            rows.add(run)
            rows.write()
    print(write_tables(output, read, overlaps, draws, failed))
    failed.raise_if_any()


def _execute_alone(number: int, *arguments: Any) -> None:
    """Do a run in a worker: one thread, and only warnings are printed.

    Args:
        number: of the run, which decides its GPU where there are several.
    """
    import torch

    from msde.cluster import process

    os.environ["LOCAL_RANK"] = str(number)
    process.prepare()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    execute(*arguments)


def _keep_plan(plan: Path, kept: Path) -> None:
    if not kept.exists():
        write_atomically(kept, lambda path: shutil.copyfile(plan, path))
    elif json.loads(kept.read_text()) != json.loads(plan.read_text()):
        raise MsdeError(f"{kept.parent} holds the runs of another plan; choose another --output")


def _shards(design: Design, data: Path, cache: Path) -> Path:
    """Return the shards of a design's file; designs of the same file and targets share them."""
    settings = make_settings(design.task, design.settings)
    return task_shards(design.task, data / design.data, cache / design.cache, settings).root


def _overlaps(
    plan: Plan, shards: dict[str, Path], path: Path, pretraining: Sequence[Path]
) -> dict[str, list[str]]:
    """Return the uids of the molecules of each design that pretraining has seen; keep and print."""
    digests = [ShardDataset(root).digest for root in pretraining]
    if path.exists():
        kept = json.loads(path.read_text())
        if not pretraining or kept["pretraining"] == digests:
            return kept["seen"]
    if not pretraining:
        sys.stderr.write("overlap with pretraining is not counted: give --pretraining DIR\n")
        return {}
    known = blocks_of_data_sets(pretraining)
    by_root: dict[Path, list[str]] = {}  # designs that differ in their labels share the shards
    for design in plan.designs:
        root = shards[design.name]
        if root not in by_root:
            task_data = read_task_data(root, design.task)
            seen = overlapping(blocks_of(task_data.mols()), known)
            by_root[root] = [f"{int(uid):016x}" for uid in task_data.columns.uid[seen]]
            log.info(
                "%s: pretraining has seen %d of %d molecules", root.name, seen.sum(), len(seen)
            )
    found = {design.name: by_root[shards[design.name]] for design in plan.designs}
    write_json(path, {"pretraining": digests, "seen": found})
    return found
