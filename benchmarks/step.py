"""Time the full training step, and the published implementation's beside it on the same batches.

python benchmarks/step.py --input pcqm4mv2-2k.csv --published MoleculeSDE --json

A step assembles a batch, draws noise, runs forward, backward and Adam. It takes the file's batches
in turn and keeps nothing of earlier steps. The sides run one after another, each in a fresh
process, --turns times: ours, the published code and, on a CPU, the published code with denormals
flushed. Memory is the peak above the memory before the first step. The floor is the time of our
step's matrix products alone, at the rate that is measured right after the step, so that the load of
other processes slows down both.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from floor import DEVICE, Products, now, product_rate, rates, step_flops
from shared import NCI, peak_memory_mb

from msde.chem.record import MoleculeRecord
from msde.cli import report_errors
from msde.cluster import process
from msde.config import make_config
from msde.data.batch import MoleculeBatch
from msde.data.codec import MoleculeColumns, columns_from_records
from msde.data.packed import PackedMolecules
from msde.data.padding import pad
from msde.data_tools.pipeline.chunks import Task, convert_chunk
from msde.data_tools.readers import Options, RawMolecule, get_reader
from msde.data_tools.reading import choose_format
from msde.errors import MsdeError
from msde.model import MoleculeSDE
from msde.monitor.flops import peak as flops_peak
from msde.philox import Key
from msde.training.activation_checkpointing import checkpoint_activations
from msde.training.cuda_graphs import GraphedMoleculeSDE
from msde.training.optimizer import parameter_groups

OURS, PUBLISHED, FLUSHED = "msde", "published", "published, denormals flushed"
IN_ENGINE = "msde in DeepSpeed's engine"
SIDES = (OURS, IN_ENGINE, PUBLISHED, FLUSHED)
WARM_UP = 2  # steps that are not timed


def make_task(format: str, keep_hydrogens: bool) -> Task:
    """Return the settings by which a benchmark converts its molecules."""
    return Task(format, Options(keep_hydrogens=keep_hydrogens, label_columns=()))


def read_molecules(path: Path, task: Task) -> Iterator[tuple[RawMolecule, MoleculeRecord]]:
    """Yield the molecules of a file that can be converted."""
    for raw in get_reader(task.format, task.options).read(path):
        columns = convert_chunk(task, [raw]).columns
        if columns is not None:
            yield raw, columns.record(0)


def make_columns(path: Path, task: Task, size: int, count: int | None) -> list[MoleculeColumns]:
    """Read the first `count` batches of `size` molecules from a file, or all batches."""
    parts: list[list[MoleculeRecord]] = [[]]
    for _, record in read_molecules(path, task):
        parts[-1].append(record)
        if len(parts[-1]) == size:
            if len(parts) == count:
                break
            parts.append([])
    if len(parts[0]) < size:
        raise MsdeError(f"{path} holds {len(parts[0])} molecules, fewer than a batch of {size}")
    return [columns_from_records(part) for part in parts if len(part) == size]


def make_batches(
    path: Path, format: str, size: int, count: int, keep_hydrogens: bool
) -> list[MoleculeBatch]:
    """Read the first `count` batches of `size` molecules from a file."""
    columns = make_columns(path, make_task(format, keep_hydrogens), size, count)
    return [MoleculeBatch.from_columns(part, Key(0, n)) for n, part in enumerate(columns)]


class Stopwatch:
    """Seconds spent in each named part, over many steps."""

    def __init__(self) -> None:
        """Start with no parts."""
        self.parts: dict[str, list[float]] = {}
        self._last = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._last = now()

    def lap(self, part: str) -> None:
        """Add the time since the last reading to `part`."""
        time = now()
        self.parts.setdefault(part, []).append(time - self._last)
        self._last = time


class Side(Protocol):
    """An implementation whose training step is measured."""

    def step(self, number: int, watch: Stopwatch) -> None:
        """Do one training step and time its parts."""


class Ours:
    """Training steps of this library on batches of molecules, in turn."""

    def __init__(self, columns: list[MoleculeColumns], arguments: argparse.Namespace) -> None:
        """Build the model of a preset."""
        self.columns = columns
        self.autocast = functools.partial(
            torch.autocast, DEVICE.type, torch.bfloat16, enabled=arguments.bfloat16
        )
        self.cuda_graphs = arguments.cuda_graphs
        graphed = self.cuda_graphs and DEVICE.type == "cuda"
        kind = GraphedMoleculeSDE if graphed else MoleculeSDE
        self.model = kind.from_seed(make_config(arguments.preset)).to(DEVICE).train()
        if arguments.activation_checkpointing:
            checkpoint_activations(self.model)
        process.set_memory_policy(sum(p.nbytes for p in self.model.parameters()))
        self.optimizer = torch.optim.Adam(parameter_groups(self.model), fused=True)

    def batch(self, number: int) -> MoleculeBatch:
        """Assemble a batch again, with the indices that the model needs."""
        packed = PackedMolecules.from_columns(self.columns[number % len(self.columns)])
        packed = pad(packed) if self.cuda_graphs else packed
        return MoleculeBatch.expand(packed, Key(0, number)).to(DEVICE)

    def step(self, number: int, watch: Stopwatch) -> None:
        """Do one training step and time its parts."""
        batch = self.batch(number)
        watch.lap("batch")
        noise = self.model.draw_noise(batch)
        watch.lap("noise")
        with self.autocast():
            loss, _ = self.model(batch, noise)
        watch.lap("forward")
        loss.backward()
        watch.lap("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        watch.lap("optimizer")


class InEngine(Ours):
    """The same steps in DeepSpeed's engine, on one rank, with the default configuration of runs."""

    def __init__(self, columns: list[MoleculeColumns], arguments: argparse.Namespace) -> None:
        """Build the engine around the model of a preset."""
        from msde.cluster import ranks
        from msde.config import deepspeed
        from msde.training import engine

        super().__init__(columns, arguments)
        os.environ.setdefault("DS_ACCELERATOR", DEVICE.type)
        os.environ.update(ranks.map_environment(os.environ))
        engine.start_process_group(timeout=60)
        shipped = "zero1" if DEVICE.type == "cuda" else "cpu_debug"
        ds_config = deepspeed.load(deepspeed.shipped_config(shipped), 1)
        self.engine = engine.make_engine(self.model, ds_config)

    def step(self, number: int, watch: Stopwatch) -> None:
        """Do one training step and time its parts."""
        batch = self.batch(number)
        watch.lap("batch")
        with self.autocast():
            loss, _ = self.engine(batch)
        watch.lap("forward")
        self.engine.backward(loss)
        watch.lap("backward")
        self.engine.step()
        watch.lap("optimizer")


def memory_mb() -> float:
    """Return the peak memory of the device, or of the process on a CPU, since the last reset."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mb()


def reset_peak() -> None:
    """Reset the peak to the present memory."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # Memory that is free after reading the file would hide as much of a step's memory.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def measure(
    side: Side, steps: int, products: Products | None = None, warm_up: int = WARM_UP
) -> dict:
    """Train for `steps` steps after the warm-up; return seconds, memory and product rates."""
    product_rates = []
    reset_peak()
    before = memory_mb()
    watch = Stopwatch()
    for number in range(warm_up + steps):
        watch.start()
        side.step(number, watch)
        if products and number >= warm_up:
            product_rates.append(products.rates(2))
    parts = {name: laps[warm_up:] for name, laps in watch.parts.items()}
    return {
        "seconds": [sum(laps) for laps in zip(*parts.values(), strict=True)],
        "parts": {name: statistics.median(laps) for name, laps in parts.items()},
        "memory_mb": memory_mb() - before,
        "memory_before_mb": before,
        "product_rates": product_rates,
    }


def run_side(arguments: argparse.Namespace) -> dict:
    """Measure one side in this process."""
    task = make_task(choose_format([arguments.input]), arguments.keep_hydrogens)
    if arguments.side in (OURS, IN_ENGINE):
        process.prepare()
        torch.set_float32_matmul_precision(arguments.matmul_precision)
        columns = make_columns(arguments.input, task, arguments.batch_size, None)
        # Steps are recorded when their size is met for the second time.
        warm_up = 2 * len(columns) if arguments.cuda_graphs else WARM_UP
        side = (Ours if arguments.side == OURS else InEngine)(columns, arguments)
        return measure(side, arguments.steps, Products(), warm_up)
    torch.set_flush_denormal(arguments.side == FLUSHED)  # before torch has threads
    from published_step import Published  # its packages are needed for this side only

    reader = get_reader(task.format, task.options)
    found = read_molecules(arguments.input, task)
    mols = (reader.parse(raw).mol for raw, _ in found)
    published = Published(arguments.published, mols, arguments.batch_size, DEVICE)
    return measure(published, arguments.steps)


def run_apart(side: str) -> dict:
    """Measure one side in a fresh process with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def summarise(turns: list[dict], batch_size: int) -> dict:
    """Return the medians over all turns of a side."""
    seconds = [statistics.median(turn["seconds"]) for turn in turns]
    step = statistics.median(s for turn in turns for s in turn["seconds"])
    parts = turns[0]["parts"]
    return {
        "molecules_per_s": batch_size / step,
        "seconds_per_step": step,
        "molecules_per_s_of_turns": [batch_size / s for s in seconds],
        "parts": {part: statistics.median(t["parts"][part] for t in turns) for part in parts},
        "memory_mb": statistics.median(turn["memory_mb"] for turn in turns),
        "memory_mb_of_turns": [turn["memory_mb"] for turn in turns],
        "memory_before_mb": statistics.median(turn["memory_before_mb"] for turn in turns),
    }


def compare(arguments: argparse.Namespace) -> dict:
    """Measure all sides in turn and compare them."""
    task = make_task(choose_format([arguments.input]), arguments.keep_hydrogens)
    columns = make_columns(arguments.input, task, arguments.batch_size, None)
    sides = [OURS]
    if arguments.engine:
        sides += [IN_ENGINE]
    if arguments.published:
        sides += [PUBLISHED, FLUSHED] if DEVICE.type == "cpu" else [PUBLISHED]
    turns: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(arguments.turns):
        for side in sides:
            turns[side].append(run_apart(side))
    found = {side: summarise(t, arguments.batch_size) for side, t in turns.items()}
    ours, theirs = found[OURS], {side: found[side] for side in sides[1:]}
    result = {
        **found,
        "times_faster": {
            side: ours["molecules_per_s"] / of["molecules_per_s"] for side, of in theirs.items()
        },
        "memory_fraction": {
            side: ours["memory_mb"] / of["memory_mb"] for side, of in theirs.items()
        },
        "preset": arguments.preset,
        "bfloat16": arguments.bfloat16,
        "matmul_precision": arguments.matmul_precision,
        "activation_checkpointing": arguments.activation_checkpointing,
        "cuda_graphs": arguments.cuda_graphs,
        "batch_size": arguments.batch_size,
        "batches": len(columns),
        "keep_hydrogens": arguments.keep_hydrogens,
        "atoms_per_molecule": statistics.mean(float(c.num_atoms.mean()) for c in columns),
        "steps": arguments.steps,
        "turns": arguments.turns,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    side = Ours(columns, arguments)
    flops = statistics.mean(step_flops(side.model, side.batch(n)) for n in range(len(columns)))
    fractions = [
        statistics.median(
            flops / product_rate(found) / seconds
            for found, seconds in zip(turn["product_rates"], turn["seconds"], strict=True)
        )
        for turn in turns[OURS]
    ]
    floors = [flops / product_rate(f) for turn in turns[OURS] for f in turn["product_rates"]]
    torch.set_float32_matmul_precision(arguments.matmul_precision)  # decides which peak
    peak = flops_peak(arguments.bfloat16)
    return result | {
        "flops_per_step": flops,
        **rates(20),
        "floor_seconds": statistics.median(floors),
        "fraction_of_floor": statistics.median(fractions),
        "fraction_of_floor_of_turns": fractions,
        "fraction_of_floor_at_the_best_rate": min(floors) / ours["seconds_per_step"],
        "model_flops_utilisation": flops / ours["seconds_per_step"] / peak if peak else None,
    }


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument(
        "--published", type=Path, metavar="DIR", help="a checkout of chao1224/MoleculeSDE"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of a turn")
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--keep-hydrogens", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="ours under autocast")
    parser.add_argument("--matmul-precision", default="highest", help="of ours")
    parser.add_argument("--activation-checkpointing", action="store_true", help="of ours")
    parser.add_argument("--cuda-graphs", action="store_true", help="ours on padded batches")
    parser.add_argument("--engine", action="store_true", help="also ours in DeepSpeed's engine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        with contextlib.redirect_stdout(sys.stderr):
            result = run_side(arguments)
        print(json.dumps(result))
        return
    # Both sides get the same threads.
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    process.prepare()
    result = compare(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    for side in filter(result.__contains__, SIDES):
        row = result[side]
        print(f"{side}: {row['molecules_per_s']:.1f} molecules/s, {row['memory_mb']:.0f} MB")


if __name__ == "__main__":
    report_errors(main)
