"""Compare the memory that launch/plan.py calculates with what runs of one rank use on a CPU.

python benchmarks/plan_memory.py --data DIR --json

Each configuration trains for three steps under ZeRO 1. A run of a tiny network stands for libraries
and buffers of the process. The memory of freed tensors is returned to the operating system at once.
By default a run on a CPU keeps it for later tensors, and its peak also depends on how well these
fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shared import ROOT

TINY = ["model.hidden_dim=16", "model.schnet.num_filters=16", "data.molecules_per_slot=2"]
LARGE = ["model.hidden_dim=512", "model.schnet.num_filters=512"]
CONFIGURATIONS = {
    "paper, 512 molecules": ["--preset=paper", "data.molecules_per_slot=512"],
    "base, 256 molecules": ["--preset=base", "data.molecules_per_slot=256"],
    "base with PaiNN, 256": [
        "--preset=base", "data.molecules_per_slot=256", "model.encoder_3d=painn",
    ],
    "base, width 512, 256": ["--preset=base", "data.molecules_per_slot=256", *LARGE],
    "base, activation checkpointing, 512": [
        "--preset=base", "data.molecules_per_slot=512", "run.activation_checkpointing=true",
    ],
    "conformers, 256": ["--preset=conformers", "data.molecules_per_slot=256"],
    "bonds, 256": ["--preset=bonds", "data.molecules_per_slot=256"],
    "large, 64": ["--preset=large", "data.molecules_per_slot=64"],
    "large, activation checkpointing, 128": [
        "--preset=large", "data.molecules_per_slot=128", "run.activation_checkpointing=true",
    ],
    "paper with PaiNN, 128": [
        "--preset=paper", "data.molecules_per_slot=128", "model.encoder_3d=painn",
    ],
    "paper, 8 layers of GIN, 384": [
        "--preset=paper", "data.molecules_per_slot=384", "model.gin.num_layers=8",
    ],
    "conformers, activation checkpointing, 384": [
        "--preset=conformers", "data.molecules_per_slot=384", "run.activation_checkpointing=true",
    ],
}  # fmt: skip
RETURNING_MEMORY = """
import runpy, sys
from msde.cluster import process
process.LARGE_MODEL = 0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def peak_of_run(data: Path, options: list[str]) -> float:
    """Return the peak memory of a run of three steps, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RETURNING_MEMORY, ROOT / "launch/pretrain.py"]
        command += ["--data", data, "--output", folder]
        command += ["--deepspeed_config", ROOT / "ds_configs/zero1.json", *options]
        command += ["data.validation_fraction=0", "run.steps=3", "run.log_every=1"]
        command += ["run.save_every=100"]
        environment = os.environ | {"DS_ACCELERATOR": "cpu"}
        subprocess.run(
            list(map(str, command)), check=True, env=environment, stderr=subprocess.DEVNULL
        )
        rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        return max(json.loads(row).get("memory/peak_mb", 0) for row in rows) * 2**20


def calculated(data: Path, options: list[str]) -> float:
    """Return the peak that launch/plan.py calculates, in bytes."""
    from msde.config import make_config
    from msde.training.sizing import measure, peaks, sample

    preset, *overrides = options
    molecules = next(int(o.partition("=")[2]) for o in overrides if "molecules_per_slot" in o)
    overrides.append("data.validation_fraction=0")
    config = make_config(preset.removeprefix("--preset="), overrides=overrides)
    batches, _ = sample(config, [str(data)])
    return peaks(measure(config, batches), molecules, 1)[0].device


def main() -> None:
    """Run all and print one JSON object, or a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from msde.cluster import process

    process.prepare()
    rest = peak_of_run(arguments.data, ["--preset=paper", *TINY])
    # First all runs: Linux counts this process's memory at its start in the peak of a child.
    peaks = {n: peak_of_run(arguments.data, options) for n, options in CONFIGURATIONS.items()}
    rows: list[dict[str, Any]] = []
    for name, options in CONFIGURATIONS.items():
        used = peaks[name] - rest
        told = calculated(arguments.data, options)
        rows.append({"name": name, "used": used, "calculated": told, "ratio": told / used})
        if not arguments.json:
            print(f"{name:42}{used / 1e6:8.0f} MB used{told / 1e6:8.0f} calculated", flush=True)
    if arguments.json:
        print(json.dumps({"rest": rest, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
