"""Molecules a second of a real run on one device: from shards to metrics, as users start it.

python benchmarks/training.py --input pcqm4mv2-2k.csv --batch-sizes 256 1024 > training.json

The device is waited for once in `--steps` steps, when their metrics are written.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from floor import waits_of_the_host
from shared import NCI, ROOT

from msde.data_tools.convert import convert
from msde.monitor.writer import read_metrics

PRETRAIN = ROOT / "launch/pretrain.py"
KEPT = (
    "throughput/molecules_per_s", "throughput/model_flops_utilisation", "time/step_s",
    "time/data_wait_s", "time/forward_s", "time/backward_s", "time/optimizer_s", "memory/peak_mb",
)  # fmt: skip
WATCHED = 5  # steps of which the waits are counted


def arguments_of_run(options: argparse.Namespace, size: int, steps: int) -> list[str]:
    """Return the arguments of launch/pretrain.py but for the data and the output."""
    shipped = "zero1" if torch.cuda.is_available() else "cpu_debug"
    graphs = str(options.cuda_graphs).lower()
    return [
        f"--preset={options.preset}", f"--deepspeed_config=ds_configs/{shipped}.json",
        f"run.steps={steps}", f"run.log_every={options.steps}", "run.save_every=1000000",
        "run.validate_every=1000000", "data.validation_fraction=0", "data.workers=2",
        f"data.molecules_per_step={size}", f"run.cuda_graphs={graphs}", *options.overrides,
    ]  # fmt: skip


def measure(options: argparse.Namespace, data: Path, folder: Path, size: int) -> dict[str, Any]:
    """Train twice `--steps` steps and return the metrics of the second half."""
    given = ["--data", data, "--output", folder / f"run-{size}"]
    given += arguments_of_run(options, size, 2 * options.steps)
    start(PRETRAIN, *given)
    row = [r for r in read_metrics(folder / f"run-{size}/metrics.jsonl") if KEPT[0] in r][-1]
    return {"batch_size": size, **{name: row[name] for name in KEPT if name in row}}


def host_waits(options: argparse.Namespace, data: Path, folder: Path, size: int) -> float | None:
    """Return how often the host waits for the GPU in a step, as torch reports it; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    given = ["--data", data, "--output", folder / f"waits-{size}"]
    given += arguments_of_run(options, size, options.steps + WATCHED)
    found = start(__file__, "--watch", options.steps, *given)
    return json.loads(found.splitlines()[-1])["waits"] / WATCHED


def start(script: str | Path, *arguments: Any) -> str:
    """Run a script in a process of its own and return what it prints."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.PIPE)
    sys.stderr.write(done.stdout.decode())
    return done.stdout.decode()


def watch(warm_up: int, arguments: list[str]) -> None:
    """Run launch/pretrain.py and print how often the host waited in steps after the warm-up."""
    from msde.training.run import Run

    take_step, waits = Run.take_step, []

    def watched(run: Run, *given: Any) -> bool:
        if run.state.step < warm_up:
            return take_step(run, *given)
        with waits_of_the_host() as found:
            stop = take_step(run, *given)
        waits.extend(found)
        return stop

    Run.take_step = watched  # type: ignore[method-assign]
    sys.argv = [str(PRETRAIN), *arguments]
    runpy.run_path(str(PRETRAIN))["main"]()
    print(json.dumps({"waits": len(waits), "where": waits}))


def main() -> None:
    """Convert the molecules, train with each size of step, and print one JSON object."""
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=50, help="timed, after as many others")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name, "shards")
        convert([options.input], data)
        for size in options.batch_sizes:
            row = measure(options, data, folder, size)
            rows.append(row | {"host_waits_a_step": host_waits(options, data, folder, size)})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts = {"preset": options.preset, "cuda_graphs": options.cuda_graphs, "device": device}
    facts["overrides"] = options.overrides
    print(json.dumps(facts | {"torch": torch.__version__, "runs": rows}))


if __name__ == "__main__":
    main()
