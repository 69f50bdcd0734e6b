"""Pretrain on a folder of shards.

deepspeed launch/pretrain.py --data DIR --output DIR [key=value ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster.launcher import Launcher
from msde.cluster.ranks import map_environment
from msde.config import PRESETS
from msde.errors import MsdeError

SHORTEST = "deepspeed launch/pretrain.py --data DIR --output DIR"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; --local_rank is the launcher's, accepted and ignored."""
    parser = OneLineParser(usage=f"{SHORTEST} [options] [key=value ...]", description=__doc__)
    add = parser.add_argument
    shards = "folder or URL of shards; repeat the option to mix several by weight"
    weights = "start from the weights and model of a run's best/, a checkpoint or a converted one"
    newest = "go on from the newest checkpoint in --output: if there is one, always, or never"
    add("--data", action="append", metavar="DIR[=WEIGHT]", help=shards)
    add("--output", type=Path, metavar="DIR", help="folder of the run")
    add("--preset", default="base", metavar="NAME", help=", ".join(PRESETS))
    add("--config", type=Path, metavar="FILE", help="JSON that overrides the preset")
    add("--deepspeed_config", type=Path, metavar="FILE", help="default: from ds_configs/")
    add("--init-from", type=Path, metavar="DIR", help=weights)
    add("--resume", choices=("auto", "required", "never"), default="auto", help=newest)
    add("--save-every", type=int, metavar="STEPS", help="same as run.save_every=")
    add("--profile", type=int, default=0, metavar="N", help="write a trace of N steps")
    add("--dry-run", action="store_true", help="print what would be done, and stop")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key=value", help="settings that override all others")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.data is None or parsed.output is None:
        raise MsdeError(f"--data and --output are needed; the shortest command is: {SHORTEST}")
    return parsed


def main() -> None:
    """Parse, set the environment that torch reads when it is imported, and pretrain."""
    launcher = Launcher()
    options = vars(parse(sys.argv[1:]))
    del options["local_rank"]
    os.environ.update(map_environment(os.environ))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stacks when a rank is gone
    from msde.training.start import start

    start(launcher, **options)


if __name__ == "__main__":
    report_errors(main)
