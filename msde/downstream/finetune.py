"""A fine-tuning: one model a seed, their predictions, and `results.json`.

DIR/config.json            task, settings, data and checkpoint; only the same run goes on
DIR/split.json             the places of the parts, with a hash
DIR/results.json           metrics of all seeds that are done
DIR/seed-N/predictions.csv of the validation and test parts
DIR/seed-N/model/          weights, for launch/predict.py and msde.ase
DIR/seed-N/tensorboard/, metrics.jsonl, results.json
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msde.checkpoints.weights import MODEL, find_weights
from msde.config import Config, read_json
from msde.downstream.evaluation import Outcome
from msde.downstream.heads import ModelFacts, make_model, network_config, save_model, seed_folders
from msde.downstream.labels import Scaling, TaskData, listed, read_task_data
from msde.downstream.settings import Settings, differences
from msde.downstream.splits import Split, known_from_training, stored_split
from msde.downstream.tasks import Task
from msde.downstream.training import STATE, Trainer
from msde.errors import MsdeError
from msde.files import LOCK, file_sha256, locked, write_atomically, write_json, write_text
from msde.inference.pretrained import trained_views, views_of

log = logging.getLogger("msde")

RESULTS, CONFIG, SPLIT = "results.json", "config.json", "split.json"
PREDICTIONS = "predictions.csv"
SHOWN = 5  # targets that are named in a message


@dataclass(frozen=True)
class Job:
    """All that the seeds of a fine-tuning share."""

    task: Task
    data: TaskData
    split: Split
    scaling: Scaling
    facts: ModelFacts
    network: Config
    settings: Settings
    weights: Path | None  # of the encoders; None: they are random
    values: dict[str, Any]  # of config.json


def prepare(
    task: Task,
    root: Path,
    output: Path,
    checkpoint: Path | None,
    settings: Settings,
    lines: Mapping[int, tuple[str, ...]] | None = None,
    words: Mapping[int, str] | None = None,
) -> Job:
    """Read and check everything, then write split and configuration to `output`.

    Args:
        root: a folder of shards.
        checkpoint: weights or a run; None for a random network of `settings.preset`.
        lines: uid -> line in the user's file, of several files (file, line), for predictions.
        words: uid -> cell of the split column.

    Raises:
        MsdeError: labels, split and checkpoint do not fit, or `output` holds another fine-tuning.
    """
    network = network_config(checkpoint, settings)
    pretrained = checkpoint is not None and settings.init == "pretrained"
    check_encoders(checkpoint, settings)
    data = read_task_data(root, task, lines, settings.split_column)
    if settings.view != "2d" and not data.has_geometry:
        raise MsdeError(
            f"view={settings.view} needs positions, which molecules of {root} lack; give view=2d"
        )
    # Nothing is written before all is checked: what an error says to change may be tried at once.
    split, text = stored_split(output / SPLIT, data, settings, task, words)
    if task.is_classification:
        _check_classes(data, split)
    scaling = Scaling.of(data, split.train, task)
    weights = find_weights(checkpoint) if checkpoint is not None else None
    values = {
        "task": task.name,
        "metric": task.metric,
        "targets": list(data.targets),
        "units": list(data.units),
        "data": {"folder": str(root), "sha256": data.digest, "molecules": len(data)},
        "split": {"sha256": split.sha256, **{k: len(v) for k, v in split.parts().items()}},
        "checkpoint": None
        if weights is None
        else {"folder": str(weights), "sha256": file_sha256(weights / MODEL)},
        "settings": dataclasses.asdict(settings),
        "energies_centred_at": scaling.mean.tolist() if task.has_forces else None,
    }
    check_same(output, values)
    if not (output / SPLIT).exists():
        write_text(output / SPLIT, text)
    if not (output / CONFIG).exists():
        write_json(output / CONFIG, values)  # last: other ranks wait for it
    data, split = _used(data, split)
    facts = ModelFacts.of(task, data.take(split.train), scaling, settings)
    kept = weights if pretrained else None
    return Job(task, data, split, scaling, facts, network, settings, kept, values)


def fine_tune(
    job: Job, output: Path, seeds: int, rank: int = 0, world_size: int = 1
) -> dict[str, Any]:
    """Fine-tune a model for each seed and return what `results.json` holds.

    Every rank takes its share of the seeds; seeds that are done are not repeated.
    """
    _announce(job)
    for seed in range(rank, seeds, world_size):
        with unfinished(output / f"seed-{seed}") as folder:
            if folder is not None:
                _one_seed(job, folder, seed)
    return collect(job, output)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path | None]:
    """Make the folder of a seed and lock it against other processes; None if the seed is done.

    Raises:
        MsdeError: another process works on it.
    """
    if (folder / RESULTS).exists():
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, f"another process works on {folder}; wait for its end"):
        yield None if (folder / RESULTS).exists() else folder
        (folder / LOCK).unlink(missing_ok=True)


def _one_seed(job: Job, folder: Path, seed: int) -> None:
    model = make_model(job.network, job.facts, job.weights, seed).to(_device())
    trainer = Trainer(job.task, job.data, job.split, job.scaling, model, job.settings, seed)
    trainer.run(folder)
    outcomes = {name: trainer.predict(places) for name, places in job.split.parts().items()
                if name != "train"}  # fmt: skip
    save_model(model, folder / "model", _origin(job, outcomes, seed))
    record_seed(job, folder, seed, outcomes, trainer.epoch, trainer.best_epoch)
    (folder / STATE).unlink(missing_ok=True)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in outcomes["test"].metrics.items())
    log.info("seed %d: test %s (best epoch %d of %d)", seed, shown, trainer.best_epoch,
             trainer.epoch)  # fmt: skip


def _origin(job: Job, outcomes: Mapping[str, Outcome], seed: int) -> list[str]:
    """Return what the card of a model says of its training."""
    data, weights = job.values["data"], job.values["checkpoint"]
    parts = ", ".join(f"{len(places):,} {name}" for name, places in job.split.parts().items())
    start = f"weights with SHA-256 {weights['sha256']}" if job.weights else "random weights"
    found = outcomes["test"].metrics.items()
    return [
        f"Data: {data['molecules']:,} molecules with labels, SHA-256 of the shards "
        f"{data['sha256']}.",
        f"Split `{job.settings.split}`: {parts}.",
        f"The encoders start from {start}; seed {seed}.",
        f"On the test part: {', '.join(f'{name} {value:.4g}' for name, value in found)}.",
    ]


def record_seed(
    job: Job,
    folder: Path,
    seed: int,
    outcomes: Mapping[str, Outcome],
    epochs: int = 0,
    best_epoch: int = 0,
) -> None:
    """Write the predictions of a seed and then its `results.json`, with which it is done.

    Args:
        outcomes: of the validation and test parts, by name.
    """
    _write_predictions(job, folder / PREDICTIONS, {k: o.predictions for k, o in outcomes.items()})
    result: dict[str, Any] = {"seed": seed, "epochs": epochs, "best": best_epoch}
    for name, outcome in outcomes.items():
        result[name] = outcome.metrics
        result[f"{name}_per_target"] = dict(zip(job.data.targets, outcome.per_target, strict=True))
    write_json(folder / RESULTS, result)


def _device() -> torch.device:
    """Return this rank's GPU, which becomes the current one, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def collect(job: Job, output: Path) -> dict[str, Any]:
    """Write the results of all seeds that are done; ranks that end together take turns."""
    with open(output / CONFIG) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return _collect(job, output)


def _collect(job: Job, output: Path) -> dict[str, Any]:
    paths = [folder / RESULTS for folder in seed_folders(output)]
    done = [read_json(path) for path in paths if path.exists()]
    names = done[0]["test"] if done else ()
    results = {
        **{p: {name: [r[p][name] for r in done] for name in names} for p in ("test", "valid")},
        "test_per_target": {
            target: [r["test_per_target"][target] for r in done] for target in job.data.targets
        },
        "seeds": [r["seed"] for r in done],
        "best_epochs": [r["best"] for r in done],
        **job.values,
    }
    write_json(output / RESULTS, results)
    return results


def _used(data: TaskData, split: Split) -> tuple[TaskData, Split]:
    """Drop molecules that are in no part, as with `labels`, so that no feature is made of them."""
    used = np.sort(np.concatenate(list(split.parts().values())))
    if len(used) == len(data):
        return data, split
    parts = {name: np.searchsorted(used, places) for name, places in split.parts().items()}
    return data.take(used), Split(**parts, sha256=split.sha256)


def check_encoders(checkpoint: Path | None, settings: Settings) -> None:
    """Check that the encoders of a view were pretrained, unless random ones are asked for.

    Raises:
        MsdeError: one was not.
    """
    if checkpoint is None or settings.init != "pretrained":
        return
    trained = trained_views(network_config(checkpoint, settings))
    untrained = [view for view in views_of(settings.view) if view not in trained]
    if untrained:
        raise MsdeError(
            f"{checkpoint} was pretrained without its {untrained[0].upper()} encoder (the "
            f"coefficients of its objectives are 0), view={settings.view} does not fit; give "
            f"view={trained[0]} or init=random"
        )


def _check_classes(data: TaskData, split: Split) -> None:
    """Check that some target has both classes in each part; say which lack one."""
    for part, places in split.parts().items():
        y = data.y[places]
        both = (y == 0).any(0) & (y == 1).any(0)  # (targets,)
        if not both.any():
            raise MsdeError(
                f"no target has both classes among the {len(places)} molecules of the {part} part; "
                "ROC-AUC needs both: choose another split= or more molecules"
            )
        lacking = [name for name, has in zip(data.targets, both, strict=True) if not has]
        if lacking:
            log.info(
                "%d of %d targets have one class in the %s part%s: %s",
                len(lacking),
                len(both),
                part,
                "" if part == "train" else " and are left out of its mean",
                listed(lacking[:SHOWN]),
            )


def _announce(job: Job) -> None:
    sizes = ", ".join(f"{len(members)} {name}" for name, members in job.split.parts().items())
    units = ", ".join(
        f"{name} [{unit}]" if unit else name
        for name, unit in zip(job.data.targets[:SHOWN], job.data.units, strict=False)
    )
    more = len(job.data.targets) - SHOWN
    log.info("%s: %s%s", job.task.name, units, f" and {more} more" if more > 0 else "")
    log.info("split %s %s: %s", job.settings.split, job.split.sha256[:16], sizes)
    may_have_copies = job.settings.split != "deepchem" and not job.task.has_forces
    if may_have_copies and log.isEnabledFor(logging.INFO):  # a suite's workers print no such lines
        for part, count in known_from_training(job.data, job.split).items():
            if count:
                log.info("%d %s molecules are copies or stereoisomers of training molecules; "
                         "split=deepchem keeps these together", count, part)  # fmt: skip
    if job.task.has_forces:
        log.info("energies are centred at the training mean, %.3f", job.scaling.mean[0])


def _write_predictions(job: Job, path: Path, predictions: dict[str, np.ndarray]) -> None:
    """Write a row for each molecule: name, line or id, part, and label and prediction."""
    names, data = job.data.names, job.data
    first = next(iter(data.lines.values()), None)
    where = ["uid"] if first is None else ["line"] if len(first) == 1 else ["file", "line"]
    columns = [n for target in data.targets for n in (target, f"{target}_predicted")]

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", *where, "part", *columns])
            for part, values in predictions.items():
                for place, row in zip(job.split.parts()[part], values, strict=True):
                    uid = int(data.columns.uid[place])
                    place_in_file = data.lines[uid] if data.lines else (f"{uid:016x}",)
                    pairs = zip(data.y[place].tolist(), row.tolist(), strict=True)
                    cells = ["" if np.isnan(n) else f"{n:.10g}" for pair in pairs for n in pair]
                    writer.writerow([names[place], *place_in_file, part, *cells])

    write_atomically(path, write)


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the places of data and weights, whose hashes are in it."""
    parts = {k: dict(v) for k, v in values.items() if isinstance(v, dict)}
    for part in parts.values():
        part.pop("folder", None)
    return values | parts


def check_same(output: Path, values: dict[str, Any] | None = None) -> None:
    """Check that a folder holds no other fine-tuning, and no configuration of something else.

    Args:
        values: those of this fine-tuning, if known.

    Raises:
        MsdeError: it does.
    """
    path = output / CONFIG
    if not path.exists():
        return
    there = read_json(path)
    if not {"task", "settings", "split"} <= there.keys():
        raise MsdeError(f"{path} is not that of a fine-tuning; choose another --output")
    if values is None:
        return
    # Settings that were added since then have their defaults.
    there["settings"] = dataclasses.asdict(Settings()) | there["settings"]
    kept, given = _without_folders(there), _without_folders(json.loads(json.dumps(values)))
    if kept != given:
        changed = differences(kept, given)
        raise MsdeError(
            f"{output} holds a fine-tuning with another {changed}; choose another --output, or "
            "give the same command"
        )
