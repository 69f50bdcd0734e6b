"""Run a command until its run is done: start it again after a failure that may go away.

python -m launch.supervise [--restarts N] --output DIR -- deepspeed launch/pretrain.py ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster.supervisor import supervise
from msde.errors import MsdeError

USAGE = "msde supervise [--restarts N] --output DIR -- command ..."


def make_parser() -> OneLineParser:
    """Return the parser of the command line; the command to run follows --."""
    example = "msde supervise --restarts 2 --output run -- msde pretrain --data data --output run"
    parser = OneLineParser(usage=USAGE, description=__doc__, example=example)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the run")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="limit of restarts")
    parser.add_argument("--pause", type=float, default=5.0, metavar="S", help="seconds between")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parsed = make_parser().parse_args(arguments)
    parsed.command = parsed.command[parsed.command[:1] == ["--"] :]
    if not parsed.command:
        raise MsdeError(f"the command is missing: {USAGE}")
    return parsed


def main() -> None:
    """Parse, supervise, and exit with the exit code of the last start."""
    arguments = parse(sys.argv[1:])
    sys.exit(supervise(**vars(arguments)))


if __name__ == "__main__":
    report_errors(main)
