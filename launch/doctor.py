"""Check this machine, and the nodes of a hostfile, for what training needs.

python launch/doctor.py [--data DIR[=WEIGHT]] [--output DIR] [--hostfile FILE]

A line for each check: fine, or FIX and what to do. The exit code is 1 where there is something to
fix.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msde.cli import OneLineParser, check_exist, report_errors


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde doctor --data data --output run"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    shards = "folder or URL of shards; can be repeated"
    add("--data", action="append", default=[], metavar="DIR[=WEIGHT]", help=shards)
    add("--output", type=Path, metavar="DIR", help="where runs will be written")
    add("--hostfile", type=Path, metavar="FILE", help="of the deepspeed launcher")
    return parser


def main() -> None:
    """Parse and examine."""
    arguments = make_parser().parse_args()
    if arguments.hostfile is not None:
        check_exist(arguments.hostfile)

    from msde.training.doctor import examine

    bad = 0
    for finding in examine(**vars(arguments)):
        print(finding, flush=True)
        bad += bool(finding.advice)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    report_errors(main)
