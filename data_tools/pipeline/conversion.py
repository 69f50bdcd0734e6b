"""The conversion of files of molecules to a folder of shards, from the first step to the last."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import rdkit

from msde.data import codec
from msde.data.shards import FORMAT, read_manifest, write_manifest
from msde.errors import MsdeError

from ..inputs import check_inputs, expand_inputs
from ..options import AUTO
from ..parsing.files import source_name
from ..parsing.reader import BaseReader
from ..parsing.types import Facts, Options, RawMolecule
from ..readers import get_reader
from ..reading import choose_format
from . import parts as parts_module
from .chunks import CHUNK, Task
from .executors import converted, open_workers
from .parts import Parts, open_parts
from .progress import Progress

WRITTEN = ("encoding", "delimiter", "decimal sign")  # roles in Facts.taken: how text is written
TABLES = ("counts", "rejects_by_reason", "notes_by_reason", "origin")  # of counts, for the manifest

COMMON = 3  # reasons in an error

log = logging.getLogger(__name__)


def convert(
    inputs: Sequence[str | Path],
    output: Path,
    format: str = AUTO,
    *,
    options: Options | None = None,
    processes: int = 1,
    executor: Executor | str | None = None,
    limit: int | None = None,
    max_rejects: float = 1.0,
    report: Callable[[str], None] = log.info,
) -> dict[str, int]:
    """Convert files to shards and return how many molecules were read, converted and rejected.

    The result does not depend on processes, executor or interruptions. Molecules that fail are
    listed in `rejects.jsonl` with the reason, unusual ones that are kept in `notes.jsonl`.

    Args:
        inputs: files, folders, patterns or `@FILE`, see `inputs.expand_inputs`.
        format: one of readers.FORMATS; `auto` asks the readers.
        executor: where to convert, an executor or the name of one: `local` (as None, with
            `processes`), `dask:ADDRESS` or `mpi`.
        limit: convert only so many molecules, the first ones.
        max_rejects: the fraction of molecules that may be rejected.
        report: gets the lines that say how the files are read.

    Raises:
        MsdeError: an input is missing, the output is taken, or too little could be converted.
    """
    inputs = expand_inputs(inputs)
    check_inputs(inputs)
    format = choose_format(inputs) if format == AUTO else format
    options = options or Options()
    reader = get_reader(format, options)
    facts = reader.facts(inputs)
    report("\n".join(describe_fields(inputs, format, facts)))
    total = _count(inputs, reader, limit)  # before a file is read, since LMDB opens it once only
    raws = _read(inputs, reader, limit)
    task = Task(format, options, len(facts.labels))
    workers = open_workers(executor or "local", processes)
    with open_parts(output, _job(inputs, reader, task, facts, limit)) as parts:
        if not parts.is_complete:
            if done := parts.total("counts").get("read", 0):
                log.info(f"going on: {done:,} molecules in {len(parts.finished)} shards are done")
            with workers as opened, contextlib.closing(Progress(total, done)) as progress:
                chunks = parts.unfinished(raws)
                for size, reasons in parts.write(converted(chunks, task, opened)):
                    progress.add(size, reasons)
            parts.write_lists()
            _check_counts(parts, max_rejects)
            manifest = {
                "labels": [dataclasses.asdict(label) for label in facts.labels],
                "forces_unit": facts.forces_unit,
                "fields": {"taken": facts.taken, "left_out": dict(facts.left_out)},
                "source": _source(inputs, format, reader, facts),
                **{table: parts.total(table) for table in TABLES},
            }
            write_manifest(output, parts.shards(), manifest)
        parts.remove()
    return read_manifest(output)["counts"]


def describe_fields(inputs: Sequence[Path], format: str, facts: Facts) -> list[str]:
    """Return lines that say how files are read: as what each column or field, and which not."""
    units = {label.name: f" [{label.unit}]" for label in facts.labels if label.unit}
    if facts.forces_unit:
        units |= {name: f" [{facts.forces_unit}]" for role, name in facts.taken if role == "forces"}
    roles: dict[str, list[str]] = {}
    for role, name in facts.taken:
        roles.setdefault(role, []).append(f"{name}{units.get(name, '')}")
    if not facts.labels:
        roles.setdefault("label", ["none"])
    others = f" and {len(inputs) - 1:,} more" if len(inputs) > 1 else ""
    written = [f"{role} {', '.join(roles.pop(role))}" for role in WRITTEN if role in roles]
    lines = [f"{inputs[0]}{others}: {', '.join([f'format {format}', *written])}"]
    lines += [f"  {role}: {', '.join(names)}" for role, names in roles.items()]
    lines += [f"  not read: {name} ({reason})" for name, reason in facts.left_out]
    return [*lines, *(f"  {note}" for note in facts.notes)]


def _read(inputs: list[Path], reader: BaseReader, limit: int | None) -> Iterator[RawMolecule]:
    """Read the inputs one after the other; the first molecule is read at once.

    So a file that cannot be read at all is an error before anything is written.
    """
    in_turn = itertools.chain.from_iterable(map(reader.read, inputs))
    raws = itertools.islice(in_turn, limit)
    first = next(raws, None)
    if first is None:
        raise MsdeError(f"no molecules in {', '.join(map(str, inputs))}")
    return itertools.chain([first], raws)


def _count(inputs: list[Path], reader: BaseReader, limit: int | None) -> int | None:
    """Return how many molecules there are to read, if all files tell."""
    counts = [reader.count(path) for path in inputs]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return sum(known) if limit is None else min(limit, sum(known))


def _job(
    inputs: list[Path], reader: BaseReader, task: Task, facts: Facts, limit: int | None
) -> dict[str, Any]:
    """Return all that the result depends on; only an equal job is resumed."""
    files = [*inputs, *itertools.chain.from_iterable(map(reader.companions, inputs))]
    stats = [(path, path.stat()) for path in files]
    return {
        "format": task.format,
        "inputs": [[source_name(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        "limit": limit,
        **dataclasses.asdict(task.options),
        **dataclasses.asdict(facts),
        "rdkit": rdkit.__version__,
        "shards": FORMAT,
        "block_version": codec.VERSION,
        "cuts": [CHUNK, parts_module.SHARD_MOLECULES, parts_module.SHARD_BYTES],
    }


def _check_counts(parts: Parts, max_rejects: float) -> None:
    counts = parts.total("counts")
    where = f"the reasons are in {parts.root / 'rejects.jsonl'}"
    if not counts["converted"]:
        reasons = collections.Counter(parts.total("rejects_by_reason")).most_common(COMMON)
        parts.remove()
        listed = "; ".join(f"{count} rejected: {reason}" for reason, count in reasons)
        raise MsdeError(
            f"none of {counts['read']} molecules could be converted ({listed}); {where}"
        )
    fraction = counts["rejected"] / counts["read"]
    if fraction > max_rejects:
        raise MsdeError(
            f"{counts['rejected']} of {counts['read']} molecules were rejected, {fraction:.1%} "
            f"where --max-rejects allows {max_rejects:.1%}; {where}; with a larger --max-rejects "
            "the same command finishes the conversion"
        )


def _source(inputs: list[Path], format: str, reader: BaseReader, facts: Facts) -> dict[str, Any]:
    """Return the origin of the molecules, for the manifest."""
    return {
        "files": [source_name(path) for path in inputs],
        "format": format,
        "hydrogens": "kept" if reader.options.keep_hydrogens else "removed",
        "rdkit": rdkit.__version__,
        "notes": list(facts.notes),
    }
