"""Many fine-tunings from one plan: tasks x splits x seeds x arms, their table and its statistics.

A plan is a JSON object:

    seeds     models of each arm and split
    settings  key=value, of all fine-tunings
    splits    a list of lists of key=value, such as [["split=scaffold"]]
    recipes   an object: settings of the arms "RECIPE NAME", key=value that win over all others;
              "frozen" is there from the start
    arms      "NAME" and "RECIPE NAME" of a checkpoint or of "random" weights, which are fine-tuned;
              and "FEATURES + forest", "+ ridge" or "+ knn", of "ecfp", "descriptors" or a NAME;
              "chosen NAME" is, for each split and seed, the one of the plan's arms NAME, "RECIPE
              NAME" and "NAME + ESTIMATOR" that validates best
    tasks     a list of objects: task, data (a file in the folder of data), and optionally settings,
              labels (a list of numbers of training molecules, null for all), targets, metric, arms,
              group (a name; designs of one group are also compared as one)

    DIR/runs/TASK-LABELS/SPLIT/ARM/  one fine-tuning each; those that are done are not repeated
    DIR/table.csv                    a row for each seed of each run
    DIR/comparisons.csv, table.md    paired log-ratios of errors, with intervals
"""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msde.config import read_json
from msde.downstream.baselines import ESTIMATORS, FINGERPRINTS, features_of
from msde.downstream.evaluation import measure
from msde.downstream.finetune import (
    PREDICTIONS,
    RESULTS,
    Job,
    collect,
    fine_tune,
    prepare,
    record_seed,
)
from msde.downstream.heads import make_model
from msde.downstream.metrics import is_better
from msde.downstream.settings import make_settings
from msde.downstream.statistics import Pair
from msde.downstream.tasks import FORCE_MAE, Task, get_task
from msde.downstream.training import represent_all
from msde.errors import MsdeError

log = logging.getLogger("msde")

PRETRAINED, RANDOM, CHOSEN = "pretrained", "random", "chosen "
RECIPES = {"frozen": ("training=frozen",)}
DEFAULT_ARMS = (PRETRAINED, RANDOM, f"frozen {PRETRAINED}", f"frozen {RANDOM}",
                "ecfp + forest", "descriptors + forest")  # fmt: skip
LISTS = {"settings", "splits", "arms", "tasks", "labels", "targets"}
KEYS = {"seeds", "settings", "splits", "arms", "tasks", "recipes"}
TASK_KEYS = {"task", "data", "settings", "labels", "targets", "metric", "arms", "group"}


@dataclass(frozen=True)
class Design:
    """A task with a number of training molecules."""

    task: Task
    data: str  # file in the folder of data
    labels: int | None
    settings: tuple[str, ...]
    arms: tuple[str, ...]
    recipes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: RECIPES)
    group: str | None = None

    @property
    def name(self) -> str:
        """The name of the design in tables and folders."""
        stem = self.task.name if self.task.name != "custom" else Path(self.data).name.split(".")[0]
        targets = f"-{'+'.join(self.task.targets or ())}" * (self.task.name == "custom")
        return f"{stem}{targets}-{self.labels or 'all'}".replace("/", "_").replace(" ", "_")


@dataclass(frozen=True)
class Run:
    """The seeds of one arm on one split of one design."""

    design: Design
    split: tuple[str, ...]
    arm: str

    @property
    def overrides(self) -> list[str]:
        """The settings of the run, as key=value; those of the arm win."""
        design = self.design
        labels = [] if design.labels is None else [f"labels={design.labels}"]
        recipe = design.recipes.get(self.recipe, ())
        random = ["init=random"] if self.source == RANDOM else []
        return [*design.settings, *self.split, *labels, *recipe, *random]

    @property
    def recipe(self) -> str:
        """Name of the settings that the arm adds, "" if it adds none."""
        first = self.arm.partition(" ")[0]
        return first if first in self.design.recipes and first != self.arm else ""

    @property
    def estimator(self) -> str | None:
        """Which of ESTIMATORS is fitted; None: the arm is fine-tuned."""
        return self.arm.partition(" + ")[2] or None

    @property
    def source(self) -> str:
        """Name of a checkpoint, or RANDOM, or of FINGERPRINTS."""
        return self.arm.removeprefix(f"{self.recipe} ").partition(" + ")[0]

    @property
    def choices(self) -> list[Run]:
        """The runs of the same split that this one takes the best of; none of it is made anew."""
        name = self.arm.removeprefix(CHOSEN)
        if name == self.arm:
            return []
        recipes = (f"{recipe} {name}" for recipe in self.design.recipes)
        arms = (name, *recipes, *(f"{name} + {kind}" for kind in ESTIMATORS))
        return [Run(self.design, self.split, arm) for arm in arms if arm in self.design.arms]

    @property
    def folder(self) -> Path:
        """Where the run lies below `runs`."""
        split = ",".join(part.partition("=")[2] for part in self.split) or "default"
        return Path(self.design.name) / split / self.arm.replace(" ", "_")


@dataclass(frozen=True)
class Plan:
    """What is run, all of it chosen before the first run."""

    seeds: int
    designs: tuple[Design, ...]
    splits: tuple[tuple[str, ...], ...] = field(default=((),))

    @property
    def arms(self) -> list[str]:
        """All arms of all designs."""
        return list(dict.fromkeys(arm for design in self.designs for arm in design.arms))

    @property
    def recipes(self) -> list[str]:
        """The names of the recipes."""
        return list(self.designs[0].recipes) if self.designs else []

    def rows(self) -> Iterator[Run]:
        """Yield what the table has, those of one split together."""
        for design in self.designs:
            for split in self.splits:
                for arm in design.arms:
                    yield Run(design, split, arm)

    def runs(self) -> Iterator[Run]:
        """Yield what has to be run."""
        return (run for run in self.rows() if not run.choices)


def read_plan(path: Path, checkpoints: Iterable[str] = (PRETRAINED,)) -> Plan:
    """Read a plan and check all of its settings, before anything is run.

    Args:
        checkpoints: names of those that arms can start from.

    Raises:
        MsdeError: a key, task, arm or setting is not known, or two splits are the same.
    """
    values = read_json(path)
    _check_keys(path, values, KEYS)
    starts = [*checkpoints, RANDOM]
    recipes = RECIPES | _read_recipes(path, values.get("recipes", {}), starts)
    known = [*starts, *(f"{recipe} {name}" for recipe in recipes for name in starts)]
    known += [f"{name} + {kind}" for kind in ESTIMATORS for name in (*FINGERPRINTS, *starts)]
    known += [CHOSEN + name for name in starts]
    designs = []
    for entry in values["tasks"]:
        _check_keys(path, entry, TASK_KEYS)
        task = get_task(entry["task"], entry.get("targets"), entry.get("metric"))
        settings = (*values.get("settings", ()), *entry.get("settings", ()))
        arms = entry.get("arms", values.get("arms", DEFAULT_ARMS))
        for arm in arms:
            if arm not in known:
                raise MsdeError(f"{path}: unknown arm {arm!r}, expected one of {', '.join(known)}")
        for labels in entry.get("labels", [None]):
            given = (task, entry["data"], labels, settings, tuple(arms), recipes)
            designs.append(Design(*given, entry.get("group")))
    splits = tuple(tuple(split) for split in values.get("splits", [[]]))
    plan = Plan(values.get("seeds", 1), tuple(designs), splits)
    if not isinstance(plan.seeds, int) or plan.seeds < 1:
        raise MsdeError(f"{path}: 'seeds' is {plan.seeds!r}, expected a number of at least 1")
    for run in plan.rows():
        if run.arm.startswith(CHOSEN) and len(run.choices) < 2:
            raise MsdeError(f"{path}: {run.arm} needs two arms to choose from")
    for run in plan.runs():
        if run.design.task.has_forces and (run.estimator or run.recipe == "frozen"):
            raise MsdeError(f"{path}: {run.arm} cannot learn forces of {run.design.task.name}")
        make_settings(run.design.task, run.overrides)
    for design in designs:
        _check_splits(path, design, splits)
    folders = [run.folder for run in plan.runs()]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise MsdeError(
            f"{path}: two runs have the same name, {twice}; rename a data file or drop one"
        )
    if any(run.estimator for run in plan.runs()) and not importlib.util.find_spec("sklearn"):
        raise MsdeError(f"{path} has arms of scikit-learn: pip install 'msde[sklearn]'")
    return plan


def _read_recipes(path: Path, values: Any, starts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the recipes of a plan; no other arm may start with the name of one."""
    if not isinstance(values, dict):
        raise MsdeError(f"{path}: 'recipes' is {values!r}, expected an object")
    taken = {name.split()[0] for name in (*starts, *FINGERPRINTS, *RECIPES, CHOSEN)}
    for name, settings in values.items():
        if not name.isidentifier() or name in taken:
            raise MsdeError(f"{path}: {name!r} cannot name a recipe, expected one new word")
        if not isinstance(settings, list):
            raise MsdeError(f"{path}: recipe {name!r} is {settings!r}, expected a list")
    return {name: tuple(settings) for name, settings in values.items()}


def _check_splits(path: Path, design: Design, splits: Sequence[tuple[str, ...]]) -> None:
    """Check that each split has other molecules: repeated ones would count as new evidence."""
    seen = set()
    for split in splits:
        given = Run(design, split, RANDOM).overrides
        settings = make_settings(design.task, given)
        if settings.split == "column":
            raise MsdeError(f"{path}: a suite cannot split {design.name} by a column")
        drawn = settings.labels is not None or settings.split in ("random", "random_scaffold")
        sizes = (settings.train, settings.valid, settings.labels)
        rule = (settings.split, settings.split_column, *sizes, drawn and settings.split_seed)
        if rule in seen:
            raise MsdeError(
                f"{path}: two splits of {design.name} are the same: split={settings.split} does "
                "not depend on split_seed; choose split=random_scaffold or random"
            )
        seen.add(rule)


def _check_keys(path: Path, values: Any, known: set[str]) -> None:
    if not isinstance(values, dict):
        raise MsdeError(
            f"{path}: found {values!r}, expected an object with {', '.join(sorted(known))}"
        )
    for key in values.keys() & LISTS:
        if not isinstance(values[key], list):
            raise MsdeError(f"{path}: {key!r} is {values[key]!r}, expected a list")
    for key in values.keys() - known:
        raise MsdeError(f"{path}: unknown key {key!r}, expected {', '.join(sorted(known))}")
    for key in known & {"tasks", "task", "data"} - values.keys():
        raise MsdeError(f"{path}: {key!r} is missing")


def execute(
    run: Run, shards: Path, checkpoints: dict[str, Path], runs: Path, seeds: int
) -> dict[str, Any]:
    """Run the seeds of an arm that are not done yet; return what its `results.json` holds.

    Args:
        checkpoints: by name; random weights take the network of the first.
    """
    output = runs / run.folder
    output.mkdir(parents=True, exist_ok=True)
    settings = make_settings(run.design.task, run.overrides)
    network = checkpoints.get(run.source) or next(iter(checkpoints.values()))
    needed = None if run.source in FINGERPRINTS else network
    job = prepare(run.design.task, shards, output, needed, settings)
    return fine_tune(job, output, seeds) if run.estimator is None else _fit(job, run, output, seeds)


def _fit(job: Job, run: Run, output: Path, seeds: int) -> dict[str, Any]:
    """Fit an estimator a seed on features that are computed once, those of random weights anew."""
    features: np.ndarray | None = None
    for seed in range(seeds):
        folder = output / f"seed-{seed}"
        if (folder / RESULTS).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if features is None or run.source == RANDOM:
            features = _features(job, run.source, seed)
        fit = ESTIMATORS[run.estimator or ""]
        predictions = fit(job.task, job.data, features, job.split, seed)
        metric = job.task.metric
        outcomes = {
            part: measure(metric, job.data.y[places], predictions[places])
            for part, places in job.split.parts().items()
            if part != "train"
        }
        record_seed(job, folder, seed, outcomes)
        log.info("%s, seed %d: test %s %.4g", run.arm, seed, metric,
                 outcomes["test"].metrics[metric])  # fmt: skip
    return collect(job, output, seeds)


def _features(job: Job, source: str, seed: int) -> np.ndarray:
    if source in FINGERPRINTS:
        return features_of(job.data, source)
    model = make_model(job.network, job.facts, job.weights, seed)
    return represent_all(model, job.data).numpy()


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
        value = read_json(found / RESULTS)["valid"][run.design.task.chosen_by]
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
                pairs.append(Pair(",".join(split), y[keep], first[keep], second[keep]))
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
