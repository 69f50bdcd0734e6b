"""Pretrain on a folder of shards.

deepspeed launch/pretrain.py --data DIR --output DIR [key=value ...]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster.launcher import Launcher
from msde.cluster.ranks import map_environment
from msde.config import PRESETS
from msde.errors import MsdeError

SHORTEST = "deepspeed launch/pretrain.py --data DIR --output DIR"


def make_parser() -> OneLineParser:
    """Return the parser of the command line; --local_rank is the launcher's, and ignored."""
    example = "msde pretrain --data data --output run run.steps=1000 optim.lr=4e-4"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    shards = "folder or URL of shards; repeat the option to mix several by weight"
    weights = "start from the weights and model of a run's best/, a checkpoint or a converted one"
    newest = "go on from the newest checkpoint in --output: if there is one, always, or never"
    ds_config = "JSON; default: cpu_debug.json of ds_configs on CPUs, zero1.json on GPUs"
    add("--data", action="append", metavar="DIR[=WEIGHT]", help=shards)
    add("--output", type=Path, metavar="DIR", help="folder of the run")
    add("--preset", default="base", choices=PRESETS, metavar="NAME", help="settings to start from")
    add("--config", type=Path, metavar="FILE", help="JSON that overrides the preset")
    add("--deepspeed_config", "--deepspeed-config", type=Path, metavar="FILE", help=ds_config)
    add("--init-from", type=Path, metavar="DIR", help=weights)
    add("--resume", choices=("auto", "required", "never"), default="auto", help=newest)
    add("--save-every", type=int, metavar="STEPS", help="same as run.save_every=")
    add("--profile", type=int, default=0, metavar="N", help="write a trace of N steps")
    add("--dry-run", action="store_true", help="print what would be done, and stop")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key=value", help="settings, see docs/configuration.md")
    return parser


def main() -> None:
    """Parse, set the environment that torch reads when it is imported, and pretrain."""
    launcher = Launcher()
    os.environ.update(map_environment(os.environ))
    options = vars(make_parser().parse_intermixed_args())
    del options["local_rank"]
    if options["data"] is None or options["output"] is None:
        raise MsdeError(f"--data and --output are needed; the shortest command is: {SHORTEST}")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stacks when a rank is gone
    from msde.training.start import start

    start(launcher, **options)


if __name__ == "__main__":
    report_errors(main)
