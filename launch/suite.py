"""Fine-tune on the tasks of a plan with several arms, and compare them.

python launch/suite.py --plan FILE.json --data DIR --output DIR [--checkpoint DIR]

The plan names the arms, see docs/downstream.md; --checkpoint NAME=DIR adds weights. A suite that
was stopped goes on with the same command. Tables: DIR/table.md, table.csv and comparisons.csv.
"""

from __future__ import annotations

import logging
from pathlib import Path

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, named_folder, report_errors
from msde.errors import MsdeError


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde suite --plan plan.json --data tables --output suite --processes 2"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    seen = "shards it was pretrained on, to count molecules that it has seen; can be repeated"
    add("--plan", type=Path, required=True, metavar="FILE", help="JSON, see docs/downstream.md")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of the plan's files")
    weights = "weights, or a run; can be repeated; default: pretrained=, those that come with msde"
    add("--checkpoint", action="append", default=[], metavar="[NAME=]DIR", help=weights)
    add("--output", type=Path, required=True, metavar="DIR", help="of the tables and all runs")
    add("--pretraining", type=Path, action="append", default=[], metavar="DIR", help=seen)
    add("--processes", type=int, default=1, metavar="N", help="runs at a time, on this machine")
    where = "local, dask:ADDRESS of a scheduler, or mpi; its workers see the same folders"
    add("--executor", default="local", help=f"where to run: {where}; default: %(default)s")
    return parser


def main() -> None:
    """Parse and run the suite."""
    arguments = make_parser().parse_args()
    named = [named_folder(text, "pretrained") for text in arguments.checkpoint]
    checkpoints = dict(named)
    if len(checkpoints) < len(named):
        raise MsdeError("--checkpoint: two have the same name; give each as NAME=DIR")
    checkpoints = checkpoints or {"pretrained": shipped_checkpoint()}
    check_exist(arguments.plan, arguments.data, *arguments.pretraining)

    from msde.cluster import process

    process.prepare()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("msde").setLevel(logging.INFO)
    from msde.data_tools.models.suite import run_suite

    del arguments.checkpoint
    run_suite(checkpoints=checkpoints, **vars(arguments))


if __name__ == "__main__":
    report_errors(main)
