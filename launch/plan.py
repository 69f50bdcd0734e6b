"""Calculate the memory of each GPU, disk, steps and hours of a run.

python launch/plan.py --preset xl --gpu H200 --gpus 64 [--data DIR] [key=value ...]

Activations and FLOPs are measured here, on two small batches, and extended to the size of a slot.
The first DeepSpeed configuration that fits is named; --output writes it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.config import deepspeed, make_config
from msde.config.presets import PRESETS


def main() -> None:
    """Parse, measure and print."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--preset", default="base", choices=PRESETS)
    add("--gpu", default="H100", metavar="NAME", help="A100-40GB, A100, H100 (default) or H200")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of all nodes together (default 1)")
    data = (
        "shards, for their sizes and steps an epoch; can be repeated; default: a typical molecule"
    )
    add("--data", action="append", default=[], metavar="DIR", help=data)
    add("--output", type=Path, metavar="FILE", help="write the DeepSpeed configuration that fits")
    add("overrides", nargs="*", metavar="key=value", help="settings, see docs/configuration.md")
    arguments = parser.parse_args()
    config = make_config(arguments.preset, overrides=arguments.overrides)

    from msde.cluster import process

    process.prepare()
    from msde.training.sizing import report

    text, name = report(config, arguments.gpu, arguments.gpus, arguments.data)
    print(text)
    print(f"use: --deepspeed_config {deepspeed.shipped_config(name)}")
    if arguments.output is not None:
        shutil.copyfile(deepspeed.shipped_config(name), arguments.output)


if __name__ == "__main__":
    report_errors(main)
