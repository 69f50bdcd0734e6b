"""The cost of a checkpoint: seconds, bytes, and its share of the time between two of them.

python benchmarks/checkpoint.py --presets paper large --ranks 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import ROOT, convert_nci

BINARIES = Path(sys.executable).parent


def measure(preset: str, data: Path, folder: Path, options: argparse.Namespace) -> dict:
    """Train a few steps with checkpoints and report their cost."""
    output = folder / preset
    command = [BINARIES / "deepspeed", f"--num_accelerators={options.ranks}"]
    command += [ROOT / "launch/pretrain.py", "--data", data, "--output", output]
    command += [f"--preset={preset}", f"run.steps={options.steps}", "run.save_every=2"]
    command += ["run.log_every=1", "data.validation_fraction=0", "run.keep_last=1"]
    command += [f"data.molecules_per_step={options.molecules}", *options.overrides]
    environment = os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        list(map(str, command)), check=True, env=environment, cwd=ROOT, stdout=sys.stderr
    )
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    saving = [row["time/checkpoint_s"] for row in rows if "time/checkpoint_s" in row]
    step = statistics.median(row["time/step_s"] for row in rows[1:])
    (last,) = (output / "checkpoints").iterdir()
    seconds = statistics.median(saving)
    return {
        "preset": preset,
        "ranks": options.ranks,
        "checkpoint_s": round(seconds, 3),
        "checkpoint_bytes": sum(path.stat().st_size for path in last.rglob("*")),
        "step_s": round(step, 3),
        "molecules_per_step": options.molecules,
        "share_at_save_every_1000": round(seconds / (1000 * step), 6),
    }


def main() -> None:
    """Measure each preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["paper", "large"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--molecules", type=int, default=64, help="in each step")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert_nci(folder / "data", 300)
        for preset in options.presets:
            print(json.dumps(measure(preset, folder / "data", folder, options)), flush=True)


if __name__ == "__main__":
    main()
