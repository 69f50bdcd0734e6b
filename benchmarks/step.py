"""Time the full training step (noise, forward, backward, Adam) on fixed batches.

python benchmarks/step.py --input pcqm4mv2-2k.csv --json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from msde.data_tools.chunks import Task, convert_one
from msde.data_tools.convert import choose_format, read_file
from msde.data_tools.readers import FORMATS, Options
from rdkit import RDConfig

from msde import cpu
from msde.batch import MoleculeBatch
from msde.codec import columns_from_records
from msde.config import make_config
from msde.errors import report_errors
from msde.model import MoleculeSDE, parameter_groups
from msde.molecule import MoleculeRecord, silence_rdkit
from msde.philox import Key

NCI = Path(RDConfig.RDDataDir) / "NCI/first_5K.smi"


def make_batches(
    path: Path, format: str, size: int, count: int, keep_hydrogens: bool
) -> list[MoleculeBatch]:
    """Read `count` batches of `size` molecules from the start of a file."""
    silence_rdkit()
    records: list[MoleculeRecord] = []
    task = Task(format, Options(keep_hydrogens=keep_hydrogens, label_columns=()))
    for raw in read_file(path, format, task.options):
        record = convert_one(raw, task)
        if isinstance(record, MoleculeRecord):
            records.append(record)
        if len(records) == size * count:
            break
    parts = [records[i : i + size] for i in range(0, len(records) - size + 1, size)]
    return [
        MoleculeBatch.from_columns(columns_from_records(part), Key(0, n))
        for n, part in enumerate(parts)
    ]


class Stopwatch:
    """Seconds spent in each named part, over many steps."""

    def __init__(self, device: torch.device) -> None:
        """Measure on `device`, which is synchronised at every reading."""
        self.device = device
        self.parts: dict[str, list[float]] = {}
        self._last = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Book the time since the last reading on `part`."""
        now = self._now()
        self.parts.setdefault(part, []).append(now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(batches: list[MoleculeBatch], preset: str, steps: int, device: torch.device) -> dict:
    """Train for `steps` steps after two that are not counted, and report the medians."""
    model = MoleculeSDE.from_seed(make_config(preset)).to(device).train()
    cpu.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    optimizer = torch.optim.Adam(parameter_groups(model), fused=True)
    before = peak_memory_mb(device)
    watch = Stopwatch(device)
    seconds = []
    for number in range(steps + 2):
        batch = batches[number % len(batches)]
        begin = time.perf_counter()
        watch.start()
        batch = batch.to(device)
        noise = model.draw_noise(batch)
        watch.lap("noise")
        loss, _ = model(batch, noise)
        watch.lap("forward")
        loss.backward()
        watch.lap("backward")
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimizer")
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    return {
        "molecules_per_s": batches[0].num_graphs / median,
        "seconds_per_step": median,
        "parts": {name: statistics.median(laps[2:]) for name, laps in watch.parts.items()},
        "peak_memory_mb": peak_memory_mb(device),
        "memory_before_first_step_mb": before,
        "threads": torch.get_num_threads(),
        "preset": preset,
        "batch_size": batches[0].num_graphs,
        "atoms_per_molecule": float(np.mean([b.num_atoms / b.num_graphs for b in batches])),
        "steps": steps,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument("--format", choices=FORMATS, help="default: what it looks like")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=2, help="distinct batches, used in turn")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--keep-hydrogens", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    cpu.prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = make_batches(
        arguments.input,
        arguments.format or choose_format([arguments.input]),
        arguments.batch_size,
        arguments.batches,
        arguments.keep_hydrogens,
    )
    result = measure(batches, arguments.preset, arguments.steps, device)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['molecules_per_s']:.0f} molecules/s, {result['seconds_per_step']:.3f} s")


if __name__ == "__main__":
    report_errors(main)
