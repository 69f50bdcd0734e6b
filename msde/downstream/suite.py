"""Many fine-tunings from one plan, and what they predicted.

DIR/runs/TASK-LABELS/SPLIT/ARM/  one fine-tuning each; those that are done are not repeated
DIR/table.csv                    a row for each seed of each run
DIR/comparisons.csv, table.md    paired log-ratios of errors, with intervals
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.config import read_json
from msde.downstream.baselines import ESTIMATORS, FINGERPRINTS, features_of
from msde.downstream.evaluation import chosen_by, measure
from msde.downstream.finetune import (
    PREDICTIONS,
    RESULTS,
    Job,
    collect,
    fine_tune,
    prepare,
    record_seed,
    unfinished,
)
from msde.downstream.heads import make_model
from msde.downstream.metrics import is_better
from msde.downstream.plan import RANDOM, Design, Plan, Run
from msde.downstream.settings import make_settings
from msde.downstream.statistics import Pair
from msde.downstream.tasks import FORCE_MAE, Task
from msde.downstream.training import represent_all
from msde.errors import MsdeError
from msde.files import make_output

log = logging.getLogger("msde")


def execute(
    run: Run, shards: Path, checkpoints: dict[str, Path], runs: Path, seeds: int
) -> dict[str, Any]:
    """Run the seeds of an arm that are not done yet; return what its `results.json` holds.

    Args:
        checkpoints: by name; random weights take the network of the first.
    """
    output = runs / run.folder
    make_output(output)
    settings = make_settings(run.design.task, run.overrides)
    network = checkpoints.get(run.source) or next(iter(checkpoints.values()))
    needed = None if run.source in FINGERPRINTS else network
    job = prepare(run.design.task, shards, output, needed, settings)
    return fine_tune(job, output, seeds) if run.estimator is None else _fit(job, run, output, seeds)


def _fit(job: Job, run: Run, output: Path, seeds: int) -> dict[str, Any]:
    """Fit an estimator a seed on features that are computed once, those of random weights anew."""
    features: np.ndarray | None = None
    for seed in range(seeds):
        with unfinished(output / f"seed-{seed}") as folder:
            if folder is None:
                continue
            if features is None or run.source == RANDOM:
                features = _features(job, run.features, seed)
            _fit_seed(job, run, features, folder, seed)
    return collect(job, output)


def _fit_seed(job: Job, run: Run, features: np.ndarray, folder: Path, seed: int) -> None:
    from threadpoolctl import threadpool_limits  # comes with scikit-learn, which is optional

    fit = ESTIMATORS[run.estimator or ""]
    with threadpool_limits(1):  # several threads round sums otherwise
        predictions = fit(job.task, job.data, features, job.split, seed)
    metric = job.task.metric
    outcomes = {
        part: measure(metric, job.data.y[places], predictions[places])
        for part, places in job.split.parts().items()
        if part != "train"
    }
    record_seed(job, folder, seed, outcomes)
    found = outcomes["test"].metrics[metric]
    log.info("%s, seed %d: test %s %.4g", run.arm, seed, metric, found)


def _features(job: Job, names: Sequence[str], seed: int) -> np.ndarray:
    """Return the features of these names side by side, (num_molecules, width)."""
    parts = []
    for name in names:
        if name in FINGERPRINTS:
            parts.append(features_of(job.data, name))
        else:
            model = make_model(job.network, job.facts, job.weights, seed)
            parts.append(represent_all(model, job.data).numpy())
    return np.concatenate(parts, axis=1)


def tested(folder: Path, task: Task) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return ids, labels and predictions of the test part, from the files of a seed.

    Returns:
        The uids (rows,), labels and predictions (rows, targets), NaN where missing. Predicted
        forces are not kept: of them one row, with the label 0 and their error as prediction.
    """
    if task.has_forces:
        error = read_json(folder / RESULTS)["test"][FORCE_MAE]
        return ["forces"], np.zeros((1, 1)), np.array([[error]])
    with open(folder / PREDICTIONS, newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    test = [row for row in rows if row[2] == "test"]
    numbers = np.array([[float(cell or "nan") for cell in row[3:]] for row in test])
    return [row[1] for row in test], numbers[:, ::2], numbers[:, 1::2]


def seed_folder(runs: Path, run: Run, seed: int) -> Path | None:
    """Return where a seed's results lie, of a choice those that validate best; None: not yet."""
    if not run.choices:
        folder = runs / run.folder / f"seed-{seed}"
        return folder if (folder / RESULTS).exists() else None
    best, best_folder = math.nan, None
    for choice in run.choices:
        found = seed_folder(runs, choice, seed)
        if found is None:
            return None
        result, task = read_json(found / RESULTS), run.design.task
        value = chosen_by(task, result["valid"], list(result["valid_per_target"].values()))
        if is_better(run.design.task.metric, value, best):
            best, best_folder = value, found
    return best_folder


def pairs_of(
    runs: Path, design: Design, arms: tuple[str, str], plan: Plan, dropped: Sequence[str] = ()
) -> list[Pair]:
    """Return the test predictions of two arms for every split and seed that both have done.

    Args:
        dropped: uids of molecules that are left out.

    Raises:
        MsdeError: the arms were tested on different molecules.
    """
    pairs, left_out = [], set(dropped)
    for split in plan.splits:
        for seed in range(plan.seeds):
            one, other = (seed_folder(runs, Run(design, split, arm), seed) for arm in arms)
            if one is None or other is None:
                continue
            (uids, y, first), (other_uids, _, second) = (
                tested(folder, design.task) for folder in (one, other)
            )
            if uids != other_uids:
                raise MsdeError(f"{one} and {other} were tested on different molecules")
            keep = [row for row, uid in enumerate(uids) if uid not in left_out]
            if keep:
                kept = [uids[row] for row in keep]
                numbers = y[keep], first[keep], second[keep]
                pairs.append(Pair(",".join(split), seed, kept, *numbers))
    return pairs


def rows_of(runs: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each seed of each run that is done."""
    rows = []
    for run, seed in ((run, seed) for run in plan.rows() for seed in range(plan.seeds)):
        folder = seed_folder(runs, run, seed)
        if folder is None or not (folder.parent / RESULTS).exists():
            continue
        split = read_json(folder.parent / RESULTS)["split"]
        for name, value in read_json(folder / RESULTS)["test"].items():
            rows.append(
                {
                    "design": run.design.name,
                    "split": ",".join(run.split) or "default",
                    "arm": run.arm,
                    "seed": seed,
                    "metric": name,
                    "value": value,
                    "split_sha256": split["sha256"],
                }
            )
    return rows
