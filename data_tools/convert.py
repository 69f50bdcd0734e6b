"""Convert files of molecules to a folder of shards that training streams from.

python -m data_tools.convert INPUT... --output DIR

A conversion that was stopped resumes after the last finished shard when the same command is given
again. Its result depends neither on that nor on the number of processes.
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

from msde.cli import OneLineParser, report_errors
from msde.errors import MsdeError

from .inputs import check_inputs, expand_inputs
from .lazy import offers
from .options import Options, add_reader_options, reader_options

COMMON = 5  # reasons of rejects that are printed

__getattr__ = offers(f"{__package__}.pipeline.conversion", "convert")


class Stopped(MsdeError):
    """The conversion was stopped by a signal."""

    exit_code = 128 + signal.SIGTERM


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    cores = len(os.sched_getaffinity(0))
    parser = OneLineParser(description=__doc__, example="msde convert molecules.csv --output data")
    add = parser.add_argument
    add(
        "inputs", nargs="+", metavar="INPUT",
        help="files (.gz, .tar.gz too), folders, patterns in quotes, or @FILE, a list of them",
    )  # fmt: skip
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the shards")
    add("--processes", type=int, default=cores, metavar="N", help="local ones; default: all cores")
    add("--executor", default="local", metavar="WHERE", help="local (default), dask:ADDRESS or mpi")
    add("--limit", type=int, metavar="N", help="read only the first N molecules")
    add(
        "--max-atoms",
        type=int,
        default=Options.max_atoms,
        metavar="N",
        help="reject molecules with more",
    )
    add(
        "--conformers", type=int, default=1, metavar="N",
        help="how many to make where there is no geometry; 0: topology only",
    )  # fmt: skip
    add("--keep-radicals", action="store_true", help="they are mostly a sign of wrong bonds")
    add(
        "--max-rejects", type=float, default=1.0, metavar="FRACTION",
        help="fail if more of the molecules are rejected; default: 1, never",
    )  # fmt: skip
    add_reader_options(parser)
    return parser


def _check_arguments(arguments: argparse.Namespace) -> None:
    limit = arguments.limit
    if arguments.processes < 1 or (limit is not None and limit < 1) or arguments.max_atoms < 1:
        raise MsdeError("--processes, --limit and --max-atoms must be at least 1")
    if arguments.conformers < 0:
        raise MsdeError("--conformers must be at least 0")
    if not 0 <= arguments.max_rejects <= 1:
        raise MsdeError("--max-rejects is a fraction, from 0 to 1")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    if multiprocessing.parent_process() is not None:
        os._exit(128 + number)  # a worker that has not set its own handler yet
    raise KeyboardInterrupt  # not an Exception, so it is never the failure of one molecule


def main() -> None:
    """Parse the command line and convert; SIGTERM and Ctrl-C end it with one line."""
    arguments = make_parser().parse_args()
    _check_arguments(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        raise Stopped("stopped; run the same command again to resume") from None


def _run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Shells may leave the tilde of --output=~/data, which fsspec expands when shards are opened.
    output = Path(os.path.expanduser(arguments.output))
    inputs = expand_inputs([os.path.expanduser(path) for path in arguments.inputs])
    check_inputs(inputs)
    from msde.data.manifest import read_manifest  # after all that can be wrong at once

    from .pipeline.conversion import convert

    counts = convert(
        inputs,
        output,
        arguments.format,
        options=reader_options(arguments),
        processes=arguments.processes,
        executor=arguments.executor,
        limit=arguments.limit,
        max_rejects=arguments.max_rejects,
        report=print,
    )
    print(
        f"{output}: {counts['converted']} molecule{'s' * (counts['converted'] != 1)} converted, "
        f"{counts['rejected']} of {counts['read']} rejected"
    )
    manifest = read_manifest(output)
    for name in ("rejects", "notes"):
        reasons = collections.Counter(manifest[f"{name}_by_reason"])
        for reason, count in reasons.most_common(COMMON):
            print(f"  {count} {'rejected' if name == 'rejects' else 'noted'}: {reason}")
        if reasons:
            print(f"  which ones: {output / name}.jsonl")


if __name__ == "__main__":
    # Workers on other machines know these modules by their installed name.
    from msde.data_tools.convert import main as installed_main

    report_errors(installed_main)
