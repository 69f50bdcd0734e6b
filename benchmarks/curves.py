"""Train `paper` with and without the fused ops; compare with the effect of the number of threads.

python benchmarks/curves.py --input pcqm4mv2-2k.csv > curves.json

Four runs with the same seed, batches and noise, each in a fresh process: fused ops on two threads,
the same with products at `medium` precision, plain torch on two threads, and plain torch on one.
Compared are the means of 20 steps of the three losses. The fused ops pass if they change these at
most twice as much as the number of threads does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from shared import NCI
from step import make_columns, make_task

from msde.cli import report_errors
from msde.cluster import process
from msde.config import make_config
from msde.data.batch import MoleculeBatch
from msde.data_tools.reading import choose_format
from msde.model import MoleculeSDE
from msde.philox import Key
from msde.training.optimizer import parameter_groups

WINDOW = 20  # steps averaged
LOSSES = ("contrastive", "2d_to_3d", "3d_to_2d")
# run -> ops, threads and precision of its process
RUNS = {
    "fused": ("fused", "2", "highest"),
    "fused, medium precision": ("fused", "2", "medium"),
    "reference": ("reference", "2", "highest"),
    "reference, one thread": ("reference", "1", "highest"),
}
Curves = dict[str, list[float]]


def train(path: Path, batch_size: int, steps: int) -> Curves:
    """Train on the file's batches in turn and return the mean losses of each window of steps."""
    process.prepare()
    columns = make_columns(path, make_task(choose_format([path]), False), batch_size, None)
    model = MoleculeSDE.from_seed(make_config("paper")).train()
    process.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    optimizer = torch.optim.Adam(parameter_groups(model), fused=True)
    torch.manual_seed(0)  # of dropout; noise is keyed by the molecules and the step
    curves: Curves = {name: [] for name in LOSSES}
    for number in range(steps):
        part = columns[number % len(columns)]
        loss, terms = model(MoleculeBatch.from_columns(part, Key(0, number)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, curve in curves.items():
            curve.append(float(terms[name].mean()))
    windows = range(0, steps, WINDOW)
    return {
        name: [statistics.mean(curve[first : first + WINDOW]) for first in windows]
        for name, curve in curves.items()
    }


def train_apart(ops: str, threads: str, precision: str) -> Curves:
    """Train in a fresh process with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--precision", precision]
    environment = {**os.environ, "MSDE_OPS": ops, "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)


def largest_differences(one: Curves, other: Curves) -> dict[str, float]:
    """Return the largest difference between two runs' windows, loss by loss and of all."""
    found = {
        name: max(abs(a - b) for a, b in zip(one[name], other[name], strict=True))
        for name in LOSSES
    }
    return found | {"all": max(found.values())}


def main() -> None:
    """Parse the command line, train and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.precision:
        torch.set_float32_matmul_precision(arguments.precision)
        print(json.dumps(train(arguments.input, arguments.batch_size, arguments.steps)))
        return
    curves = {run: train_apart(*how) for run, how in RUNS.items()}
    of_ops = largest_differences(curves["fused"], curves["reference"])
    of_medium = largest_differences(curves["fused, medium precision"], curves["fused"])
    of_threads = largest_differences(curves["reference"], curves["reference, one thread"])
    result = {
        "curves": curves,
        "largest_difference_of_ops": of_ops,
        "largest_difference_of_medium_precision": of_medium,
        "largest_difference_of_threads": of_threads,
        "at_most_twice": {name: of_ops[name] <= 2 * of_threads[name] for name in of_ops},
        "medium_at_most_twice": {n: of_medium[n] <= 2 * of_threads[n] for n in of_medium},
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    report_errors(main)
