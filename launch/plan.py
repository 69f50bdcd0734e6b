"""Calculate the memory of each GPU, disk, steps and hours of a run.

python launch/plan.py --preset xl --gpu H200 --gpus 64 [--data DIR] [key=value ...]

Activations and FLOPs are measured here, on two small batches, and extended to the size of a slot.
The first DeepSpeed configuration that fits is named; --output writes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from msde.cli import OneLineParser, check_writable, report_errors
from msde.config import deepspeed, make_config
from msde.config.choices import GPU_MEMORY
from msde.config.presets import PRESETS
from msde.errors import require


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde plan --preset large --gpu H200 --gpus 8 data.molecules_per_slot=256"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    add("--preset", default="base", choices=PRESETS, metavar="NAME", help="of the network")
    add("--gpu", default="H100", choices=GPU_MEMORY, metavar="NAME", help="kind of GPU")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of all nodes together")
    data = (
        "shards, for their sizes and steps an epoch; can be repeated; default: a typical molecule"
    )
    add("--data", action="append", default=[], metavar="DIR", help=data)
    add("--output", type=Path, metavar="FILE", help="write the DeepSpeed configuration that fits")
    add("overrides", nargs="*", metavar="key=value", help="settings, see docs/configuration.md")
    return parser


def main() -> None:
    """Parse, measure and print."""
    arguments = make_parser().parse_intermixed_args()
    require({"--gpus must be at least 1": arguments.gpus >= 1})
    if arguments.output is not None:
        check_writable(arguments.output)
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
