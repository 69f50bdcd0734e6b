"""The plan of a suite: tasks x splits x seeds x arms, all chosen before the first run.

A plan is a JSON object:

    seeds     models of each arm and split
    settings  key=value, of all fine-tunings
    splits    a list of lists of key=value, such as [["split=scaffold"]]
    recipes   an object: settings of the arms "RECIPE NAME", key=value that win over all others, but
              none of the split; "frozen" is there from the start
    arms      "NAME" and "RECIPE NAME" of a checkpoint or of "random" weights, which are fine-tuned;
              and "FEATURES + forest", "+ ridge" or "+ knn", of "ecfp", "descriptors", a NAME, or
              two side by side, "NAME and descriptors"; "chosen NAME" is, for each split and seed,
              the one of the plan's arms NAME, "RECIPE NAME", "NAME + ESTIMATOR" and "NAME and
              FINGERPRINT + ESTIMATOR" that validates best
    tasks     a list of objects: task, data (a file in the folder of data), and optionally settings,
              labels (a list of numbers of training molecules, null for all), targets, metric, arms,
              group (a name; designs of one group are also compared as one)
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msde.config import read_json
from msde.downstream.baselines import ESTIMATORS, FINGERPRINTS
from msde.downstream.settings import OF_SPLITS, make_settings
from msde.downstream.tasks import Task, get_task
from msde.errors import MsdeError

PRETRAINED, RANDOM, CHOSEN, AND = "pretrained", "random", "chosen ", " and "
RECIPES = {"frozen": ("training=frozen",)}
DEFAULT_ARMS = (PRETRAINED, RANDOM, f"frozen {PRETRAINED}", f"frozen {RANDOM}",
                "ecfp + forest", "descriptors + forest")  # fmt: skip
LISTS = {"settings", "splits", "arms", "tasks", "labels", "targets"}
KEYS = {"seeds", "settings", "splits", "arms", "tasks", "recipes"}
TASK_KEYS = {"task", "data", "settings", "labels", "targets", "metric", "arms", "group"}


def _fitted(features: Iterable[str]) -> list[str]:
    return [f"{names} + {kind}" for names in features for kind in ESTIMATORS]


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
        return f"{self._of_all_labels}-{self.labels or 'all'}"

    @functools.cached_property
    def view(self) -> str:
        """The view that its molecules are converted for."""
        return make_settings(self.task, self.settings).view

    @property
    def cache(self) -> str:
        """The name of its shards, which designs that differ in the number of labels share."""
        return f"{self._of_all_labels}-all" + ("" if self.view == "2d" else "-3d")

    @property
    def _of_all_labels(self) -> str:
        stem = self.task.name if self.task.name != "custom" else Path(self.data).name.split(".")[0]
        targets = f"-{'+'.join(self.task.targets or ())}" * (self.task.name == "custom")
        return f"{stem}{targets}".replace("/", "_").replace(" ", "_")


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
    def features(self) -> list[str]:
        """Names of what the arm knows of a molecule: of weights, of FINGERPRINTS, or of both."""
        return self.arm.removeprefix(f"{self.recipe} ").partition(" + ")[0].split(AND)

    @property
    def source(self) -> str:
        """Name of a checkpoint, or RANDOM, or of FINGERPRINTS."""
        return self.features[0]

    @property
    def choices(self) -> list[Run]:
        """The runs of the same split that this one takes the best of; none of it is made anew."""
        name = self.arm.removeprefix(CHOSEN)
        if name == self.arm:
            return []
        recipes = (f"{recipe} {name}" for recipe in self.design.recipes)
        features = (name, *(f"{name}{AND}{other}" for other in FINGERPRINTS))
        arms = (name, *recipes, *_fitted(features))
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
        return list(self.designs[0].recipes)

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
        MsdeError: a key, task, arm or setting is not known, a list is empty, two splits are the
            same, or two files have one name.
    """
    values = read_json(path)
    _check_keys(path, values, KEYS)
    recipes = RECIPES | _read_recipes(path, values.get("recipes", {}), [*checkpoints, RANDOM])
    known = _known_arms(checkpoints, recipes)
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
            if labels is not None and type(labels) is not int:  # True is an int
                raise MsdeError(f"{path}: 'labels' holds {labels!r}, expected a number or null")
            given = (task, entry["data"], labels, settings, tuple(arms), recipes)
            designs.append(Design(*given, entry.get("group")))
    for split in values.get("splits", []):
        if not isinstance(split, list):
            raise MsdeError(f"{path}: a split is {split!r}, expected a list of key=value")
        _check_texts(path, "a member of a split", split)
    splits = tuple(tuple(split) for split in values.get("splits", [[]]))
    plan = Plan(values.get("seeds", 1), tuple(designs), splits)
    if type(plan.seeds) is not int or plan.seeds < 1:
        raise MsdeError(f"{path}: 'seeds' is {plan.seeds!r}, expected a number of at least 1")
    _check_runs(path, plan)
    for design in designs:
        _check_splits(path, design, splits)
    _check_files(path, designs)
    names = [design.name for design in designs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise MsdeError(
            f"{path}: two designs are named {twice[0]}; make them one task, or rename a data file"
        )
    folders = [run.folder for run in plan.runs()]
    if twice := [str(folder) for folder in folders if folders.count(folder) > 1]:
        raise MsdeError(f"{path}: two runs have the same name, {twice[0]}; drop one")
    if any(run.estimator for run in plan.runs()) and not importlib.util.find_spec("sklearn"):
        raise MsdeError(f"{path} has arms of scikit-learn: pip install 'msde[sklearn]'")
    return plan


def _known_arms(checkpoints: Iterable[str], recipes: Iterable[str]) -> list[str]:
    """Return the arms that a plan may name; no checkpoint may be called like another thing."""
    starts = [*checkpoints, RANDOM]
    for name in starts[:-1]:
        if name.split()[0] in {RANDOM, *FINGERPRINTS, *recipes, CHOSEN.strip()} or AND in name:
            raise MsdeError(
                f"--checkpoint {name}=DIR: {name!r} means something else in a plan; "
                "give the checkpoint another name"
            )
    known = [*starts, *(f"{recipe} {name}" for recipe in recipes for name in starts)]
    known += _fitted((*FINGERPRINTS, *starts))
    known += _fitted(f"{name}{AND}{other}" for name in starts for other in FINGERPRINTS)
    return known + [CHOSEN + name for name in starts]


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
        _check_texts(path, f"a member of recipe {name!r}", settings)
        for key in (setting.partition("=")[0].strip() for setting in settings):
            if key in OF_SPLITS:
                raise MsdeError(
                    f"{path}: recipe {name!r} sets {key}, but all arms are trained and tested on "
                    "the same molecules; give it in 'splits', 'settings' or 'labels'"
                )
    return {name: tuple(settings) for name, settings in values.items()}


def _check_texts(path: Path, what: str, values: Sequence[Any]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise MsdeError(f"{path}: {what} is {value!r}, expected text")


def _check_runs(path: Path, plan: Plan) -> None:
    """Check that each run can be made: its arm, its settings, and what they are made for."""
    for run in plan.rows():
        if run.arm.startswith(CHOSEN) and len(run.choices) < 2:
            raise MsdeError(f"{path}: {run.arm} needs two arms to choose from")
    for run in plan.runs():
        if run.design.task.has_forces and (run.estimator or run.recipe == "frozen"):
            raise MsdeError(f"{path}: {run.arm} cannot learn forces of {run.design.task.name}")
        if make_settings(run.design.task, run.overrides).view != run.design.view:
            raise MsdeError(
                f"{path}: {run.arm} changes the view of {run.design.name}, for which its molecules "
                "are converted; give view= in 'settings'"
            )


def _check_splits(path: Path, design: Design, splits: Sequence[tuple[str, ...]]) -> None:
    """Check that each split trains or tests on other molecules: it would count as new evidence."""
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


def _check_files(path: Path, designs: Sequence[Design]) -> None:
    """Check that designs that share their shards have the same file."""
    files: dict[str, str] = {}
    for design in designs:
        other = files.setdefault(design.cache, design.data)
        if other != design.data:
            raise MsdeError(
                f"{path}: {design.task.name} is read from two files whose designs have the same "
                f"name, {other} and {design.data}; rename one file, or plan a suite for each"
            )


def _check_keys(path: Path, values: Any, known: set[str]) -> None:
    if not isinstance(values, dict):
        raise MsdeError(
            f"{path}: found {values!r}, expected an object with {', '.join(sorted(known))}"
        )
    for key in values.keys() & LISTS:
        if not isinstance(values[key], list):
            raise MsdeError(f"{path}: {key!r} is {values[key]!r}, expected a list")
        if not values[key] and key != "settings":
            raise MsdeError(f"{path}: {key!r} is empty, expected at least one; or leave it out")
    for key in values.keys() - known:
        raise MsdeError(f"{path}: unknown key {key!r}, expected {', '.join(sorted(known))}")
    for key in known & {"tasks", "task", "data"} - values.keys():
        raise MsdeError(f"{path}: {key!r} is missing")
    for key in values.keys() & {"settings", "arms", "targets"}:
        _check_texts(path, f"a member of {key!r}", values[key])
    for key in values.keys() & {"task", "data"}:
        _check_texts(path, repr(key), [values[key]])
    if not isinstance(values.get("group"), str | None):
        raise MsdeError(f"{path}: 'group' is {values['group']!r}, expected text or null")
