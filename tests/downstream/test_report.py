"""Tables of a suite whose runs are not all there, made of predictions that are written here."""

import json

import numpy as np
import pytest

from msde.downstream.plan import Run, read_plan
from msde.downstream.report import comparisons, write_tables
from msde.errors import ErrorList

ARMS = ("pretrained", "random")


def make_plan(folder, splits=5, seeds=3):
    tasks = [
        {"task": "custom", "data": f"{name}.csv", "targets": ["y"], "group": "g"} for name in "ab"
    ]
    given = [["split=random", f"split_seed={seed}"] for seed in range(splits)]
    plan = {"seeds": seeds, "arms": ARMS, "splits": given, "tasks": tasks}
    (folder / "plan.json").write_text(json.dumps(plan))
    return read_plan(folder / "plan.json")


def write_run(runs, run, seed, rows=30):
    """What a fine-tuning leaves: the errors of pretrained weights are half of the others."""
    folder = runs / run.folder / f"seed-{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, *"".join(run.split).encode(), *run.arm.encode()])
    size = 0.5 if run.arm == "pretrained" else 1.0
    lines = [f"m,{n:016x},test,0,{size * rng.normal()}" for n in range(rows)]
    (folder / "predictions.csv").write_text("\n".join(["name,uid,part,y,y_predicted", *lines]))
    (folder / "results.json").write_text(json.dumps({"test": {"rmse": size}}))
    (folder.parent / "results.json").write_text(json.dumps({"split": {"sha256": "0"}}))


def write_runs(output, plan, missing=lambda run, seed: False):
    for run in plan.runs():
        for seed in range(plan.seeds):
            if not missing(run, seed):
                write_run(output / "runs", run, seed)


def test_a_group_leaves_out_a_design_that_has_hardly_a_split(tmp_path):
    """Three seeds of one split are no three splits: the group has the splits of the other."""
    plan = make_plan(tmp_path)
    first = plan.splits[0]
    write_runs(tmp_path, plan, lambda run, _: run.design.name[0] == "b" and run.split != first)
    a, b, group = comparisons(tmp_path / "runs", plan, {}, 50, ErrorList())
    assert (a["pairs"], b["pairs"], group["pairs"]) == (15, 3, 15)
    assert (group["low"], group["high"]) == (a["low"], a["high"]) and a["verdict"] == "better"


def test_designs_of_one_split_are_pooled_over_their_seeds(tmp_path):
    plan = make_plan(tmp_path, splits=1, seeds=4)
    # Of the other design the first seed is missing: seeds are paired by their numbers.
    write_runs(tmp_path, plan, lambda run, seed: run.design.name[0] == "b" and seed == 0)
    *_, group = comparisons(tmp_path / "runs", plan, {}, 50, ErrorList())
    assert group["pairs"] == 7 and np.isfinite(group["low"])
    few = make_plan(tmp_path / "runs", splits=1, seeds=1)
    assert {row["verdict"] for row in comparisons(tmp_path / "runs", few, {}, 50, ErrorList())} == {
        "open"
    }


def test_tables_tell_how_many_models_they_are_of(tmp_path):
    plan = make_plan(tmp_path, splits=2)
    missing = Run(plan.designs[1], plan.splits[1], "random")
    write_runs(tmp_path, plan, lambda run, seed: run == missing and seed == 2)
    text = write_tables(tmp_path, plan, {}, 50, ErrorList())
    assert "over seeds and splits, of 6 models if no other number is in brackets" in text
    assert "| a-y-all | rmse | 0.5 ± 0 | 1 ± 0 |" in text
    assert "| b-y-all | rmse | 0.5 ± 0 | 1 ± 0 (5) |" in text
    assert "| b-y-all | pretrained / random | all | 5 |" in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_cannot_be_compared_is_collected_and_the_rest_is_compared(tmp_path, seeds):
    plan = make_plan(tmp_path, splits=1, seeds=seeds)
    write_runs(tmp_path, plan)
    path = tmp_path / "runs" / Run(plan.designs[0], plan.splits[0], "random").folder
    path = path / "seed-0/predictions.csv"
    path.write_text(path.read_text().replace(f"{3:016x}", f"{99:016x}"))
    failed = ErrorList()
    text = write_tables(tmp_path, plan, {}, 50, failed)
    assert [str(error).endswith("tested on different molecules") for error in failed.errors] == [1]
    assert "| b-y-all | pretrained / random | all |" in text and "| a-y-all | rmse |" in text
    assert (tmp_path / "table.png").exists() and ("| - | 1.000 | open |" in text) == (seeds == 1)
