"""Train `paper` with and without the fused ops; compare with the effect of the number of threads.

python benchmarks/curves.py --input pcqm4mv2-2k.csv > curves.json

Three runs with the same seed, batches and noise, each in a fresh process: fused ops on two threads,
plain torch on two, and plain torch on one. Compared are the means of 20 steps of the three losses.
The fused ops pass if they change these at most twice as much as the number of threads does.
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
from step import NCI, make_columns, make_task

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
# run -> the environment of its process
RUNS = {
    "fused": {"MSDE_OPS": "fused", "OMP_NUM_THREADS": "2"},
    "reference": {"MSDE_OPS": "reference", "OMP_NUM_THREADS": "2"},
    "reference, one thread": {"MSDE_OPS": "reference", "OMP_NUM_THREADS": "1"},
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


def train_apart(environment: dict[str, str]) -> Curves:
    """Train in a fresh process with the arguments of this one."""
    command = [sys.executable, *sys.argv, "--alone"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
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
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(train(arguments.input, arguments.batch_size, arguments.steps)))
        return
    curves = {run: train_apart(environment) for run, environment in RUNS.items()}
    of_ops = largest_differences(curves["fused"], curves["reference"])
    of_threads = largest_differences(curves["reference"], curves["reference, one thread"])
    result = {
        "curves": curves,
        "largest_difference_of_ops": of_ops,
        "largest_difference_of_threads": of_threads,
        "at_most_twice": {name: of_ops[name] <= 2 * of_threads[name] for name in of_ops},
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    report_errors(main)
