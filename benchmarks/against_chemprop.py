"""Fine-tune the shipped encoder and train chemprop on the same splits, beside forests.

python -m venv rival && rival/bin/pip install chemprop==2.3.1 torch==2.13.0
OMP_NUM_THREADS=1 python benchmarks/against_chemprop.py --chemprop rival/bin/chemprop \
    --data moleculenet --output against

Every arm is a command of its own, on one thread; its seconds are those of the processor and of one
model, starting up and reading included. chemprop has its defaults and gets the molecules of
`launch/suite.py`'s split as a column, so it comes after another arm. OUTPUT/rows.jsonl has a line
for each model; arms that are there are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.cli import report_errors
from msde.downstream.labels import TaskData, read_task_data
from msde.downstream.metrics import METRICS
from msde.downstream.tasks import get_task
from msde.errors import MsdeError

SUITE = Path(__file__).parents[1] / "launch/suite.py"
DESIGNS = ("esol", "freesolv", "bbbp", "esol-100", "freesolv-100")
CHEMPROP = "chemprop"
ARMS = ("ecfp + forest", "descriptors + forest", "pretrained", "random", CHEMPROP)
SETTINGS = ["epochs=60", "lr=1e-3", "batch_size=32", "dropout=0.1", "patience=15"]  # as the recipes


def run(command: list[str | Path], log: Path) -> float:
    """Run a command; return the seconds that it took on the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def run_arm(design: str, number: int, arm: str, output: Path, given: argparse.Namespace) -> list:
    """Run an arm of a suite on one split; return metric, value and seconds of each model."""
    task, _, labels = design.partition("-")
    entry = {"task": task, "data": f"{task}.csv", "labels": [int(labels) if labels else None]}
    split = ["split=random_scaffold", f"split_seed={number}"]
    plan = {"arms": [arm], "settings": SETTINGS, "splits": [split], "tasks": [entry]}
    path = output / "given.json"
    path.write_text(json.dumps({"seeds": given.seeds, **plan}))
    options = ["--plan", path, "--data", given.data, "--output", output / "suite"]
    seconds = run([sys.executable, SUITE, *options], output / "log.txt")
    with open(output / "suite/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row["metric"], float(row["value"]), seconds / len(rows)) for row in rows]


def write_table(data: TaskData, split: dict, path: Path) -> np.ndarray:
    """Write the molecules of a split with their parts; return the labels of the test part."""
    mols = list(data.mols())
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "y", "split"])
        for part, word in (("train", "train"), ("valid", "val"), ("test", "test")):
            for place in split[part]:
                writer.writerow([Chem.MolToSmiles(mols[place]), data.y[place, 0], word])
    return data.y[split["test"]]


def run_chemprop(design: str, output: Path, given: argparse.Namespace) -> list:
    """Train chemprop on the split of the other arms; return metric, value and seconds."""
    split = next(output.parent.glob("*/suite/runs/*/*/*/split.json"), None)
    if split is None:
        raise MsdeError(f"no arm of msde has made a split in {output.parent}")
    task = get_task(design.partition("-")[0])
    data = read_task_data(next((split.parents[4] / "data").iterdir()), task)
    labels = write_table(data, json.loads(split.read_text()), output / "table.csv")
    kind = "classification" if task.is_classification else "regression"
    columns = ["--smiles-columns", "smiles", "--target-columns", "y", "--splits-column", "split"]
    options = ["--data-path", output / "table.csv", *columns, "--task-type", kind]
    found = []
    for seed in range(given.seeds):
        model = output / f"seed-{seed}"
        more = ["--pytorch-seed", str(seed), "--accelerator", "cpu", "--output-dir", model]
        seconds = run([given.chemprop, "train", *options, *more], output / "log.txt")
        with open(model / "model_0/test_predictions.csv", newline="") as file:
            predictions = np.array([[float(row["y"])] for row in csv.DictReader(file)])
        found.append((task.metric, float(METRICS[task.metric](labels, predictions)), seconds))
    return found


def show(rows: list[dict], designs: list[str]) -> None:
    """Print mean and deviation over splits and seeds, and the mean seconds, of each arm."""
    for design, arm in ((design, arm) for design in designs for arm in ARMS):
        found = [row for row in rows if (row["design"], row["arm"]) == (design, arm)]
        if found:
            values, seconds = ([row[key] for row in found] for key in ("value", "cpu_s"))
            mean = f"{np.mean(values):.4g} ± {np.std(values):.2g} of {len(values)}"
            print(design, arm, found[0]["metric"], mean, f"{np.mean(seconds):.0f} s", sep="\t")


def main() -> None:
    """Run what is not done, all arms of a split after one another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chemprop", type=Path, required=True, help="the rival's program")
    parser.add_argument("--data", type=Path, required=True, help="folder with esol.csv and others")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--designs", nargs="+", default=DESIGNS, help="TASK or TASK-LABELS")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="models of each arm and split")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["design"], row["split"], row["arm"]) for row in rows}
    for design, number, arm in itertools.product(given.designs, range(given.splits), given.arms):
        if (design, number, arm) in done:
            continue
        output = given.output / design / str(number) / arm.replace(" ", "_")
        output.mkdir(parents=True, exist_ok=True)
        if arm == CHEMPROP:
            found = run_chemprop(design, output, given)
        else:
            found = run_arm(design, number, arm, output, given)
        named = {"design": design, "split": number, "arm": arm}
        for seed, (metric, value, seconds) in enumerate(found):
            rows.append({**named, "seed": seed, "metric": metric, "value": value, "cpu_s": seconds})
            with open(path, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    show(rows, given.designs)


if __name__ == "__main__":
    report_errors(main)
