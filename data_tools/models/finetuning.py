"""Fine-tuning on files of molecules: read as `data_tools.convert` reads them, cached as shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.record import molecule_uid
from msde.chem.vocabulary import MoleculeError
from msde.data.manifest import NAME, read_manifest
from msde.data.shards import ShardDataset
from msde.downstream.finetune import CONFIG, check_encoders, check_same, fine_tune, prepare
from msde.downstream.labels import assumed, labels_of, unit_of
from msde.downstream.settings import Settings, make_settings
from msde.downstream.tasks import CUSTOM, Task, get_task
from msde.errors import MsdeError, require_name
from msde.files import make_output

from ..inputs import check_inputs, expand_inputs
from ..options import AUTO, SPECIAL, Options
from ..parsing.files import source_name
from ..parsing.reader import BaseReader
from ..parsing.tables import dialect_of, header_of, is_table, rows
from ..readers import get_reader
from ..readers.moleculenet import table_name
from ..reading import choose_format
from .cache import convert_once

log = logging.getLogger("msde")

CLASSES = (
    "all labels are 0 or 1 and are learnt as numbers; --metric roc_auc trains a classification"
)


@dataclass(frozen=True)
class Shards:
    """A folder of shards, and what the file says of its molecules beside them."""

    root: Path
    lines: dict[int, tuple[str, ...]] = field(default_factory=dict)  # uid -> line, or file and line
    words: dict[int, str] = field(default_factory=dict)  # uid -> cell of the split column
    assumed: Sequence[str] = ()  # messages on units that the file does not state


def finetune_file(
    task: str,
    data: Path,
    checkpoint: Path | None,
    output: Path,
    *,
    seeds: int = 1,
    targets: Sequence[str] | None = None,
    metric: str | None = None,
    overrides: Sequence[str] = (),
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any]:
    """Fine-tune on a file or a folder of shards, and return what `results.json` holds.

    Raises:
        MsdeError: the data, the checkpoint or a setting cannot be used.
    """
    if seeds < 1:
        raise MsdeError(f"--seeds is {seeds}, expected at least 1")
    chosen = get_task(task, targets, metric)
    settings = make_settings(chosen, overrides)
    check_encoders(checkpoint, settings)  # before a conversion for one view that does not fit
    make_output(output)
    check_same(output)
    if rank:
        _wait_for(output / CONFIG)
    shards = task_shards(chosen, data, output / "data", settings, format, options)
    job = prepare(chosen, shards.root, output, checkpoint, settings, shards.lines, shards.words)
    known = job.data.y[~np.isnan(job.data.y)]
    if chosen.name == CUSTOM and metric is None and np.isin(known, (0, 1)).all():
        log.warning(CLASSES)
    results = fine_tune(job, output, seeds, rank, world_size)
    for message in shards.assumed:  # again at the end, where it is seen
        log.warning(message)
    return results


def task_shards(
    task: Task,
    data: Path,
    cache: Path,
    settings: Settings,
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
) -> Shards:
    """Return the shards of a task's data, converted to `cache` unless they are there.

    Raises:
        MsdeError: a file cannot be read, a label is not there, or holds text.
    """
    if (data / NAME).exists():
        options.refuse((*SPECIAL, "label_columns"), f"{data}, which is a folder of shards")
        return Shards(data, words=_words_of_shards(data, settings))
    inputs = _files_of(task, data)
    check_inputs(inputs)
    format = choose_format(inputs) if format == AUTO else format
    options, assumptions = _with_labels(task, inputs, format, options)
    for message in assumptions:
        log.warning(message)
    # Positions are made only if an encoder looks at them; a reader's own stay.
    is_made = "conformers" in get_reader(format).follows
    options = replace(options, conformers=int(settings.view != "2d") if is_made else 1)
    reader = get_reader(format, options)
    lines = _lines(inputs, reader)
    if convert_once(inputs, cache, format, options):
        manifest = read_manifest(cache)
        reasons, counts = manifest["rejects_by_reason"], manifest["counts"]
        if reasons:
            listed = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
            log.info("%d of %d molecules cannot be used: %s (%s)", counts["rejected"],
                     counts["read"], listed[:300], cache / "rejects.jsonl")  # fmt: skip
    return Shards(cache, lines, _words_of_tables(inputs, options, settings), assumptions)


def _files_of(task: Task, data: Path) -> list[Path]:
    """Return the files that --data names; of a folder the one that is named like the task."""
    if not data.exists():
        raise MsdeError(f"--data {data} does not exist")
    if data.is_dir() and task.name != CUSTOM:
        files = [path for path in sorted(data.iterdir()) if path.is_file()]
        stems = {p: (source_name(p).lower().partition(".")[0], table_name(p)) for p in files}
        named = [path for path in files if task.stem in stems[path]]
        named = named or [p for p in files if task.stem in source_name(p).lower()]
        if len(named) != 1:
            found = ", ".join(p.name for p in named) or "none"
            raise MsdeError(
                f"{data} holds {len(named)} files named like {task.stem} ({found}), expected one; "
                "give --data FILE"
            )
        return named
    return expand_inputs([data])


def _with_labels(
    task: Task, inputs: Sequence[Path], format: str, options: Options
) -> tuple[Options, list[str]]:
    """Choose the labels of a task; those whose unit is not stated have the task's.

    Returns:
        The options, and messages on units that are not stated.

    Raises:
        MsdeError: one is not there, those that are there are named; or it needs a unit.
    """
    if task.targets is None:
        return options, []
    facts = get_reader(format, options).facts(inputs)
    units = {label.name: label.unit for label in facts.labels}
    there = [*units, *(name for name, _ in facts.left_out)]
    if is_table(inputs[0]):
        there = [name for name in header_of(inputs[0], options) if name] or there
    names, messages = [], []
    for name in labels_of(task.targets, there, inputs[0]):
        stated = units.get(name, "")
        unit = stated or unit_of(task, name, stated)
        if unit and not stated:
            example = "eV" if task.has_forces else "UNIT"
            remedy = f"give --label-columns {name}={example} and another --output"
            messages.append(assumed(name, unit, remedy))
        names.append(f"{name}={unit}" if unit else name)
    return replace(options, label_columns=tuple(names)), messages


def _lines(inputs: Sequence[Path], reader: BaseReader) -> dict[int, tuple[str, ...]]:
    """Return the line of each molecule by its uid, of several files the file, too.

    Raises:
        MsdeError: there is text among the labels.
    """
    lines: dict[int, tuple[str, ...]] = {}
    for path in inputs:
        for raw in reader.read(path):
            file = (path.name,) if len(inputs) > 1 else ()
            lines[molecule_uid(raw.source, raw.line)] = (*file, str(raw.line))
            if isinstance(raw.payload, MoleculeError) and "is not a number" in str(raw.payload):
                raise MsdeError(
                    f"{path}, line {raw.line}: {raw.payload}; mend it, leave the cell empty, or "
                    "choose other --targets"
                )
    return lines


def _words_of_tables(
    inputs: Sequence[Path], options: Options, settings: Settings
) -> dict[int, str]:
    """Return the cells of the split column by uid."""
    column, words = settings.split_column, {}
    if column is None:
        return words
    for path in inputs:
        if not is_table(path):
            raise MsdeError(f"{path} is no table; split=column needs one, or a folder of shards")
        header = header_of(path, options)
        require_name(path, "column", column, header)
        place = header.index(column)
        for line, cells in rows(path, dialect_of(path, options)):
            cell = cells[place] if place < len(cells) else ""
            words[molecule_uid(source_name(path), line)] = cell
    return words


def _words_of_shards(root: Path, settings: Settings) -> dict[int, str]:
    """Return the values of the label that divides a data set, by uid."""
    column = settings.split_column
    if column is None:
        return {}
    dataset = ShardDataset(root)
    names = [label["name"] for label in dataset.manifest["labels"]]
    require_name(root, "label", column, names)
    place = names.index(column)
    return {
        int(uid): f"{value:g}"
        for block in dataset.blocks()
        for uid, value in zip(block.uid, block.y[:, place], strict=True)
    }


def _wait_for(path: Path) -> None:
    """Wait until the first rank has prepared the data; the launcher ends all ranks if it fails."""
    while not path.exists():
        time.sleep(0.2)
