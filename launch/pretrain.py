"""Pretrain on a folder of shards.

deepspeed launch/pretrain.py --data DIR --output DIR [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster import ranks
from msde.cluster.launcher import Launcher
from msde.config import PRESETS, Config, deepspeed, make_config, to_dict
from msde.errors import ErrorList, MsdeError

SHORTEST = "deepspeed launch/pretrain.py --data DIR --output DIR"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; the launcher's own --local_rank is accepted and not needed."""
    parser = OneLineParser(usage=f"{SHORTEST} [options] [key=value ...]", description=__doc__)
    parser.add_argument(
        "--data",
        action="append",
        metavar="DIR[=WEIGHT]",
        help="folder or URL of shards; again for more, mixed by weight",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--preset", default="base", metavar="NAME", help=", ".join(PRESETS))
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON over the preset")
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        metavar="FILE",
        help="default: the one in ds_configs/ that suits the machine",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="start from the weights, and with the model, of a run's best/, a checkpoint or a "
        "converted one",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "required", "never"),
        default="auto",
        help="from the newest checkpoint in --output: if there is one, by all means, or not at all",
    )
    parser.add_argument("--save-every", type=int, metavar="STEPS", help="same as run.save_every=")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="write a trace of N steps"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over all the others")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.data is None or parsed.output is None:
        raise MsdeError(f"--data and --output are needed; the shortest command is: {SHORTEST}")
    return parsed


def resolve(arguments: argparse.Namespace) -> Config:
    """Build the configuration; with --init-from the model is that of the weights."""
    over = None
    if arguments.init_from is not None:
        from msde.checkpoints.weights import read_config

        theirs = read_config(arguments.init_from)
        over = {
            "model": to_dict(theirs.model),
            "loss": {"anneal_power": theirs.loss.anneal_power},
        }
    return make_config(arguments.preset, arguments.config, arguments.overrides, over)


def check_data(data: list[str], config: Config | None) -> None:
    """Check that there are data, before any model is built.

    Args:
        config: None if it has mistakes of its own; then data that must be copied are passed over.
    """
    from msde.training.plan import open_data

    errors = ErrorList()
    for item in data:
        if config is None and "://" in item:
            continue
        with errors.collect():
            open_data([item], config.data.stage_dir if config else None)
    errors.raise_if_any()


def begun_with(arguments: argparse.Namespace) -> int | None:
    """Return how many slots a step the run has that is resumed, if one is."""
    from msde.checkpoints.snapshots import newest_manifest

    if arguments.resume == "never":
        return None
    return newest_manifest(arguments.output / "checkpoints").get("slots")


def dry_run(
    config: Config, ds_config: dict, arguments: argparse.Namespace, world_size: int
) -> None:
    """Print the resolved configuration and what a run with it would do."""
    import torch

    from msde.model import MoleculeSDE
    from msde.training.plan import make_plan, state_memory

    plan = make_plan(config, arguments.data, ds_config["train_batch_size"])
    with torch.device("meta"):
        model = MoleculeSDE(config)
    count = sum(p.numel() for p in model.parameters())
    print(json.dumps({"config": to_dict(config), "deepspeed": ds_config}, indent=2))
    states = state_memory(count, world_size, ds_config)
    print(
        f"model: {count:,} parameters; states without activations take, of each rank, "
        f"{states.device / 1e9:.2f} GB on the device and {states.host / 1e9:.2f} GB on the host\n"
        f"{plan.describe()}"
    )


def main() -> None:
    """Parse, check all that is cheap to check, and train."""
    launcher = Launcher()
    arguments = parse(sys.argv[1:])
    os.environ.update(ranks.map_environment(os.environ))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stacks when a rank is gone
    rank, world_size = ranks.rank(), ranks.world_size()
    if arguments.save_every is not None:
        arguments.overrides.append(f"run.save_every={arguments.save_every}")
    from msde.cluster import process

    process.prepare()
    errors = ErrorList()
    config: Config | None = None
    with errors.collect():
        config = resolve(arguments)
    import torch

    on_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    chosen = arguments.deepspeed_config
    ds_path = chosen or deepspeed.shipped_config("zero1" if on_gpu else "cpu_debug")
    with errors.collect():
        ds_config = deepspeed.load(ds_path, world_size, begun_with(arguments))
    with errors.collect():
        check_data(arguments.data, config)
    errors.raise_if_any()
    assert config is not None  # or there would have been a problem
    deepspeed.check_together(config, ds_config)
    if arguments.dry_run:
        if rank == 0:
            dry_run(config, ds_config, arguments, world_size)
        return

    logging.basicConfig(format=f"[rank {rank}] %(message)s", level=logging.WARNING)
    logging.getLogger("msde").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    if chosen is None:
        logging.getLogger("msde").info("DeepSpeed configuration: %s", ds_path)
    from msde.training.run import pretrain

    pretrain(
        config,
        arguments.data,
        arguments.output,
        ds_config,
        arguments.resume,
        arguments.init_from,
        arguments.profile,
        launcher,
    )


if __name__ == "__main__":
    report_errors(main)
