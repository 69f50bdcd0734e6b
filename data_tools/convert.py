"""Convert files of molecules to a folder of shards that training streams from.

python -m data_tools.convert INPUT... --output DIR

A conversion that was stopped goes on, when the same command is given again, after the last shard
that was finished. Its result depends neither on that nor on the number of processes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import rdkit

from msde.cli import OneLineParser, report_errors
from msde.data import codec
from msde.data.shards import FORMAT, read_manifest, write_manifest
from msde.errors import MsdeError

from .pipeline import parts as parts_module
from .pipeline.chunks import CHUNK, Task
from .pipeline.executors import Workers, converted, open_workers
from .pipeline.parts import Parts, open_parts
from .pipeline.progress import Progress
from .readers import FORMATS, Facts, Options, RawMolecule, check_trusted, get_reader, source_name

AUTO = "auto"
REMOTE_WORKERS = 64  # assumed of an executor that somebody else opened

log = logging.getLogger(__name__)


class Stopped(MsdeError):
    """Somebody asked the conversion to stop."""

    exit_code = 128 + signal.SIGTERM


def convert(
    inputs: list[Path],
    output: Path,
    format: str = AUTO,
    *,
    options: Options | None = None,
    processes: int = 1,
    executor: Executor | None = None,
    limit: int | None = None,
    max_rejects: float = 1.0,
) -> dict[str, int]:
    """Convert files to shards and return the counts of what happened.

    The result does not depend on processes, executor or interruptions. Molecules that fail are
    listed in `rejects.jsonl` with the reason, unusual ones that are kept in `notes.jsonl`.

    Args:
        format: one of readers.FORMATS; `auto` asks the readers.
        executor: where to convert; None for `processes` local ones.
        max_rejects: the fraction of molecules that may be rejected.

    Raises:
        MsdeError: an input is missing, the output is taken, or too little could be converted.
    """
    if executor is not None:
        workers = contextlib.nullcontext(Workers(executor, REMOTE_WORKERS))
    else:
        workers = open_workers("local", processes)
    return _convert(inputs, output, format, options or Options(), workers, limit, max_rejects)


def _convert(
    inputs: list[Path],
    output: Path,
    format: str,
    options: Options,
    workers: contextlib.AbstractContextManager[Workers],
    limit: int | None,
    max_rejects: float,
) -> dict[str, int]:
    _check_inputs(inputs)
    format = choose_format(inputs) if format == AUTO else format
    reader = get_reader(format)
    check_trusted(reader, inputs, options)
    facts = reader.facts(inputs, options)
    raws = _read(inputs, format, options, limit)
    task = Task(format, options, len(facts.labels))
    job = _job(inputs, task, facts, limit)
    with open_parts(output, job) as parts:
        if not parts.is_complete:
            _convert_parts(raws, parts, task, workers)
            _check_counts(parts, max_rejects)
            write_manifest(output, parts.shards(), _facts(inputs, task, facts, reader, parts))
        parts.remove()
    return read_manifest(output)["counts"]


def _convert_parts(
    raws: Iterable[RawMolecule],
    parts: Parts,
    task: Task,
    opened: contextlib.AbstractContextManager[Workers],
) -> None:
    """Write the parts that are not finished yet."""
    if parts.finished:
        done = parts.total("counts")["read"]
        log.info(f"going on: {done:,} molecules in {len(parts.finished)} shards are finished")
    with opened as workers, Progress() as progress:
        chunks = parts.unfinished(raws)
        for size, reasons in parts.write(converted(chunks, task, workers)):
            progress.add(size, reasons)
    parts.write_lists()


def _check_counts(parts: Parts, max_rejects: float) -> None:
    counts = parts.total("counts")
    where = f"the reasons are in {parts.root / 'rejects.jsonl'}"
    if not counts["converted"]:
        parts.remove()
        raise MsdeError(f"none of {counts['read']} molecules could be converted; {where}")
    fraction = counts["rejected"] / counts["read"]
    if fraction > max_rejects:
        raise MsdeError(
            f"{counts['rejected']} of {counts['read']} molecules were rejected, {fraction:.1%} "
            f"where --max-rejects allows {max_rejects:.1%}; {where}; with a larger --max-rejects "
            "the same command finishes what is there"
        )


def _job(inputs: list[Path], task: Task, facts: Facts, limit: int | None) -> dict[str, Any]:
    """Describe all that the result depends on, so that nothing else goes on with its parts."""
    stats = [path.stat() for path in inputs]
    return {
        "format": task.format,
        "inputs": [
            [source_name(path), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(inputs, stats, strict=True)
        ],
        "limit": limit,
        **dataclasses.asdict(task.options),
        **dataclasses.asdict(facts),
        "rdkit": rdkit.__version__,
        "shards": FORMAT,
        "block_version": codec.VERSION,
        "cuts": [CHUNK, parts_module.SHARD_MOLECULES, parts_module.SHARD_BYTES],
    }


def _facts(
    inputs: list[Path], task: Task, facts: Facts, reader: ModuleType, parts: Parts
) -> dict[str, Any]:
    """Say in the manifest where the molecules come from and what became of them."""
    keep = task.options.hydrogens(reader.KEEP_HYDROGENS)
    return {
        "labels": [dataclasses.asdict(label) for label in facts.labels],
        "forces_unit": facts.forces_unit,
        "source": {
            "files": [source_name(path) for path in inputs],
            "format": task.format,
            "hydrogens": "kept" if keep else "removed",
            "rdkit": rdkit.__version__,
            "notes": list(facts.notes),
        },
        "counts": parts.total("counts"),
        "rejects_by_reason": parts.total("rejects_by_reason"),
        "notes_by_reason": parts.total("notes_by_reason"),
        "origin": parts.total("origin"),
    }


def recognise(path: Path) -> str | None:
    """Return the format that a file looks like, or None.

    Raises:
        MsdeError: the file cannot be read, or is empty.
    """
    with _failures_are_told(path):
        if not path.stat().st_size:
            raise MsdeError(f"no molecules in {path}: it is empty")
        return next((name for name in FORMATS if get_reader(name).recognises(path)), None)


def choose_format(inputs: list[Path]) -> str:
    """Return the format that all inputs look like.

    Raises:
        MsdeError: there is none, or not one for all.
    """
    found = []
    for path in inputs:
        format = recognise(path)
        if format is None:
            known = ", ".join(FORMATS)
            raise MsdeError(f"{path} looks like no format that is known; give --format ({known})")
        found.append(format)
    if len(set(found)) > 1:
        other = next(n for n, format in enumerate(found) if format != found[0])
        raise MsdeError(
            f"{inputs[0]} looks like {found[0]}, {inputs[other]} like {found[other]}; convert them "
            "one by one and put them together with data_tools.merge, or give --format"
        )
    return found[0]


def read_file(path: Path, format: str, options: Options | None = None) -> Iterator[RawMolecule]:
    """Yield the molecules of one file, not parsed yet.

    Raises:
        MsdeError: the file cannot be read, or not to its end.
    """
    with _failures_are_told(path):
        yield from get_reader(format).read(path, options or Options())


@contextlib.contextmanager
def _failures_are_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise MsdeError(f"input {path} cannot be read: {error}") from error


def _read(
    inputs: list[Path], format: str, options: Options, limit: int | None
) -> Iterator[RawMolecule]:
    """Read the inputs one after the other; the first molecule is read at once.

    So a file that cannot be read at all is noticed before anything is written.
    """
    in_turn = itertools.chain.from_iterable(read_file(path, format, options) for path in inputs)
    raws = itertools.islice(in_turn, limit)
    first = next(raws, None)
    if first is None:
        raise MsdeError(f"no molecules in {', '.join(map(str, inputs))}")
    return itertools.chain([first], raws)


def _check_inputs(inputs: list[Path]) -> None:
    for path in inputs:
        if not path.is_file():
            raise MsdeError(f"input {path} is not a file")
    names = collections.Counter(source_name(path) for path in inputs)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise MsdeError(
            f"two inputs are named {twice}; molecules are known by file name and line, rename one"
        )


def _parse_arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = OneLineParser(
        prog="data_tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help=".gz is read too")
    add("--output", required=True, type=Path, metavar="DIR")
    add("--format", default=AUTO, choices=(AUTO, *FORMATS), help="default: by the name")
    add("--processes", type=int, default=cores, metavar="N", help="local ones; default: all cores")
    add("--executor", default="local", metavar="WHERE", help="local, dask:ADDRESS or mpi")
    add("--limit", type=int, metavar="N", help="read only the first N molecules")
    add(
        "--keep-hydrogens", action=argparse.BooleanOptionalAction, help="default: as is usual there"
    )
    add(
        "--max-atoms", type=int, default=Options.max_atoms, metavar="N",
        help="reject larger molecules",
    )  # fmt: skip
    add(
        "--conformers", type=int, default=1, metavar="N",
        help="how many to make where there is no geometry; 0: topology only",
    )  # fmt: skip
    add(
        "--group-conformers", action="store_true", help="neighbours with one title are one molecule"
    )
    add("--keep-radicals", action="store_true", help="where they are mostly mistakes of a format")
    add("--smiles-column", metavar="NAME", help="of a table; default: one named like one")
    add("--name-column", metavar="NAME", help="of a table; default: one named like one")
    add("--label-columns", metavar="NAME[=UNIT],...", help="default: all that hold numbers")
    add("--trust-pickle", action="store_true", help="read pickles, which can run any program")
    add(
        "--max-rejects", type=float, default=1.0, metavar="FRACTION",
        help="fail if more of the molecules are rejected; default: 1, never",
    )  # fmt: skip
    arguments = parser.parse_args()
    _check_arguments(arguments)
    return arguments


def _check_arguments(arguments: argparse.Namespace) -> None:
    limit = arguments.limit
    if arguments.processes < 1 or (limit is not None and limit < 1) or arguments.max_atoms < 1:
        raise MsdeError("--processes, --limit and --max-atoms must be at least 1")
    if arguments.conformers < 0:
        raise MsdeError("--conformers must be at least 0")
    if not 0 <= arguments.max_rejects <= 1:
        raise MsdeError("--max-rejects is a fraction, from 0 to 1")


def _options(arguments: argparse.Namespace) -> Options:
    names = arguments.label_columns
    columns = None if names is None else tuple(n.strip() for n in names.split(",") if n.strip())
    return Options(
        keep_hydrogens=arguments.keep_hydrogens,
        conformers=arguments.conformers,
        smiles_column=arguments.smiles_column,
        name_column=arguments.name_column,
        label_columns=columns,
        group_conformers=arguments.group_conformers,
        keep_radicals=arguments.keep_radicals,
        trust_pickle=arguments.trust_pickle,
        max_atoms=arguments.max_atoms,
    )


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    if multiprocessing.parent_process() is not None:
        os._exit(128 + number)  # a worker that had no time to choose its own way to end
    raise KeyboardInterrupt  # which nobody takes for the failure of a molecule


def main() -> None:
    """Parse the command line and convert; SIGTERM and Ctrl-C end it with one line."""
    arguments = _parse_arguments()
    signal.signal(signal.SIGTERM, _stop)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        raise Stopped("stopped; run the same command again to go on") from None


def _run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    format, inputs = arguments.format, arguments.inputs
    if format == AUTO:
        _check_inputs(inputs)
        format = choose_format(inputs)
        print(f"{inputs[0]}{' and others' if len(inputs) > 1 else ''}: format {format}")
    counts = _convert(
        inputs,
        arguments.output,
        format,
        _options(arguments),
        open_workers(arguments.executor, arguments.processes),
        arguments.limit,
        arguments.max_rejects,
    )
    print(
        f"{arguments.output}: {counts['converted']} molecules converted, "
        f"{counts['rejected']} of {counts['read']} rejected (see rejects.jsonl)"
    )
    if counts["outside_vocabulary"]:
        print(f"{counts['outside_vocabulary']} hold atoms outside the vocabulary (see notes.jsonl)")
    for reason, count in _common_reasons(arguments.output):
        print(f"  {count} rejected: {reason}")


def _common_reasons(output: Path) -> list[tuple[str, int]]:
    reasons = json.loads((output / "manifest.json").read_text())["rejects_by_reason"]
    return collections.Counter(reasons).most_common(5)


if __name__ == "__main__":
    # Workers on other machines know these modules by their installed name.
    from msde.data_tools.convert import main as installed_main

    report_errors(installed_main)
