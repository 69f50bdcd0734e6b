"""Fine-tune a pretrained model on a task, and measure it.

deepspeed launch/finetune.py --task NAME --data FILE|DIR --output DIR [--checkpoint DIR|none]

Tasks are bbbp and others of MoleculeNet, qm9-gap and others, md17-ethanol and others, and custom. A
run that was stopped goes on with the same command. docs/downstream.md has the settings key=value.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, report_errors
from msde.cluster import ranks
from msde.data_tools.options import add_reader_options, reader_options


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; --local_rank is the launcher's, accepted and ignored."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--task", required=True, metavar="NAME", help="a named task, or custom")
    add("--data", type=Path, required=True, metavar="FILE", help="or a folder, also of shards")
    add("--checkpoint", default=shipped_checkpoint(), metavar="DIR", help="weights, a run, or none")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--seeds", type=int, default=1, metavar="N", help="models, one a seed; shared by the ranks")
    add("--targets", type=lambda text: text.split(","), metavar="A,B", help="of custom")
    add("--metric", help="of custom: rmse (default), mae or roc_auc")
    add_reader_options(parser)
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key=value", help="settings: docs/downstream.md")
    return parser.parse_intermixed_args(arguments)


def main() -> None:
    """Parse, check the paths and fine-tune."""
    arguments = parse(sys.argv[1:])
    options = reader_options(arguments)
    checkpoint = None if arguments.checkpoint == "none" else Path(arguments.checkpoint)
    check_exist(arguments.data, *([checkpoint] if checkpoint else []))
    os.environ.update(ranks.map_environment(os.environ))
    from msde.cluster import process

    process.prepare()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("msde").setLevel(logging.INFO if ranks.rank() == 0 else logging.ERROR)
    from msde.data_tools.models.finetuning import finetune_file

    names = ("task", "data", "output", "seeds", "targets", "metric", "overrides", "format")
    given = {name: getattr(arguments, name) for name in names} | {"checkpoint": checkpoint}
    finetune_file(options=options, **given, rank=ranks.rank(), world_size=ranks.world_size())


if __name__ == "__main__":
    report_errors(main)
