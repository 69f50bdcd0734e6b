"""Fine-tune a pretrained model on a task, and measure it.

deepspeed launch/finetune.py --task NAME --data FILE|DIR --output DIR [--checkpoint DIR|none]
A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, report_errors
from msde.cluster import ranks
from msde.data_tools.options import add_reader_options, reader_options
from msde.downstream.settings import describe_settings, make_settings
from msde.downstream.tasks import CUSTOM, METRICS, TASKS, get_task


def make_parser() -> OneLineParser:
    """Return the parser of the command line; --local_rank is the launcher's, and ignored."""
    example = "msde finetune --task custom --targets y --data molecules.csv --output tuned lr=1e-3"
    parser = OneLineParser(description=f"{__doc__}\n{describe_settings()}", example=example)
    add, tasks, shipped = parser.add_argument, (CUSTOM, *TASKS), shipped_checkpoint()
    add("--task", required=True, choices=tasks, metavar="NAME", help="what is predicted")
    add("--data", type=Path, required=True, metavar="FILE", help="molecules, or shards")
    add("--checkpoint", default=shipped, metavar="DIR", help="weights, or none; default: shipped")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of models and results")
    add("--seeds", type=int, default=1, metavar="N", help="models, one a seed; shared by the ranks")
    add("--targets", type=lambda text: text.split(","), metavar="A,B", help="of --task custom")
    add("--metric", choices=METRICS, metavar="NAME", help="of --task custom; default: rmse")
    add_reader_options(parser)
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key=value", help="settings, listed above")
    return parser


def main() -> None:
    """Parse, check the paths and fine-tune."""
    arguments = make_parser().parse_intermixed_args()
    names = ("task", "data", "output", "seeds", "targets", "metric", "overrides", "format")
    given = {n: getattr(arguments, n) for n in names} | {"options": reader_options(arguments)}
    make_settings(get_task(given["task"], given["targets"], given["metric"]), given["overrides"])
    checkpoint = None if arguments.checkpoint == "none" else Path(arguments.checkpoint)
    check_exist(arguments.data, *([checkpoint] if checkpoint else []))
    os.environ.update(ranks.map_environment(os.environ))
    from msde.cluster import process

    process.prepare()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("msde").setLevel(logging.INFO if ranks.rank() == 0 else logging.ERROR)
    from msde.data_tools.models.finetuning import finetune_file

    finetune_file(**given, checkpoint=checkpoint, rank=ranks.rank(), world_size=ranks.world_size())


if __name__ == "__main__":
    report_errors(main)
