"""A suite: one plan, all arms on the same split, restartable, with tables and overlaps."""

import json
import os

import numpy as np
import pytest

from fixtures.downstream import read_predictions as read
from fixtures.downstream import save_checkpoint, write_table, write_trajectory
from msde.data_tools.convert import convert
from msde.data_tools.models import suite as runs_of_suites
from msde.data_tools.models.suite import run_suite
from msde.data_tools.options import Options
from msde.downstream import suite
from msde.downstream.baselines import features_of, fit_ridge
from msde.downstream.finetune import prepare
from msde.downstream.heads import make_model
from msde.downstream.plan import DEFAULT_ARMS, read_plan
from msde.downstream.settings import make_settings
from msde.downstream.training import represent_all
from msde.errors import MsdeError

ARMS = [
    *DEFAULT_ARMS,
    "other",
    "frozen other",
    "pretrained + ridge",
    "random + ridge",
    "ecfp + ridge",
    "random + knn",
    "pretrained and ecfp + ridge",
    "random and ecfp + ridge",
    "staged pretrained",
    "staged random",
    "chosen pretrained",
    "chosen random",
]
PLAN = {
    "seeds": 2,
    "arms": ARMS,
    "recipes": {"staged": ["training=staged", "head_epochs=2", "epochs=3"]},
    "settings": ["epochs=1", "dropout=0"],
    "splits": [["split=random", "split_seed=1"]],
    "tasks": [
        {
            "task": "custom",
            "data": "t.csv",
            "targets": ["logp"],
            "labels": [20, None],
            "group": "greasy",
        },
    ],
}
TWO_FILES = [
    {"task": "custom", "data": f"{name}/t.csv", "targets": ["logp"], "labels": [labels]}
    for name, labels in (("a", 10), ("b", 20))
]
MD17 = [{"task": "md17-ethanol", "data": "e", "arms": ["frozen random"]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    write_table(folder / "t.csv", 60)
    write_table(folder / "seen.csv", 20)
    convert([folder / "seen.csv"], folder / "seen", options=Options(conformers=0))
    save_checkpoint(folder / "checkpoint")
    save_checkpoint(folder / "other")
    (folder / "plan.json").write_text(json.dumps(PLAN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msde.downstream.baselines.TREES", 10)
        run(folder, pretraining=[folder / "seen"])
    return folder


def checkpoints(folder):
    return {"pretrained": folder / "checkpoint", "other": folder / "other"}


def run(folder, **options):
    output = folder / "out"
    run_suite(folder / "plan.json", folder, checkpoints(folder), output, draws=50, **options)


def test_every_run_has_its_row_and_the_arms_share_their_split(folder):
    rows = read(folder / "out/table.csv")
    assert len(rows) == 2 * len(ARMS) * 2
    for design in ("t-logp-20", "t-logp-all"):
        mine = [row for row in rows if row["design"] == design]
        assert {row["arm"] for row in mine} == set(ARMS)
        assert len({row["split_sha256"] for row in mine}) == 1
        assert all(float(row["value"]) > 0 for row in mine)


def test_comparisons_are_paired_with_intervals_and_without_what_pretraining_saw(folder):
    rows = read(folder / "out/comparisons.csv")
    assert len(rows) == 18 * 3 * 2  # comparisons, two designs and their group, overlap or not
    for row in rows:
        assert float(row["low"]) <= float(row["log_ratio"]) <= float(row["high"])
        assert row["pairs"] == ("4" if row["scope"] == "group" else "2")
    overlap = json.loads((folder / "out/overlap.json").read_text())
    assert len(overlap["seen"]["t-logp-all"]) == 20
    text = (folder / "out/table.md").read_text()
    assert (folder / "out/table.png").stat().st_size > 10_000
    assert "| pretrained / random | 2 |" in text and "| greasy | pretrained / random |" in text
    assert "| staged pretrained / staged random | 2 |" in text
    assert "| staged pretrained / random | 2 |" in text
    assert "| t-logp-20 | rmse |" in text and "t-logp-all 20" in text


def test_a_choice_is_what_validates_best_for_each_seed(folder):
    """Also where that is not the best on the test."""
    rows = {(r["design"], r["arm"], r["seed"]): r["value"] for r in read(folder / "out/table.csv")}
    for design in ("t-logp-20", "t-logp-all"):
        for name, seed in (("pretrained", "0"), ("pretrained", "1"), ("random", "0")):
            arms = (name, f"frozen {name}", f"staged {name}", f"{name} + ridge",
                    f"{name} and ecfp + ridge")  # fmt: skip
            valid = {}
            for arm in arms:
                (path,) = (folder / "out/runs" / design).glob(
                    f"*/{arm.replace(' ', '_')}/seed-{seed}/results.json"
                )
                valid[arm] = json.loads(path.read_text())["valid"]["rmse"]
            best = min(valid, key=valid.get)
            assert rows[design, f"chosen {name}", seed] == rows[design, best, seed]
    assert not list((folder / "out/runs").glob("*/*/chosen*"))


def test_ridge_regression_on_weights_and_a_fingerprint_has_both_side_by_side(folder, tmp_path):
    arm = "pretrained and ecfp + ridge"
    plan = read_plan(folder / "plan.json", ["pretrained", "other"])
    (run,) = (run for run in plan.runs() if run.arm == arm and run.design.labels is None)
    task, settings = run.design.task, make_settings(run.design.task, run.overrides)
    job = prepare(task, folder / "out/data/t-logp-all", tmp_path, folder / "checkpoint", settings)
    model = make_model(job.network, job.facts, job.weights, 0)
    parts = [represent_all(model, job.data).numpy(), features_of(job.data, "ecfp")]
    expected = fit_ridge(task, job.data, np.hstack(parts), job.split, 0)[job.split.test]
    _, _, found = suite.tested(folder / "out/runs" / run.folder / "seed-0", task)
    assert np.allclose(np.sort(found, 0), np.sort(expected, 0), atol=1e-5)


def test_a_recipe_gives_its_arms_their_settings(folder):
    for arm, expected in (("staged_random", ("staged", 3)), ("random", ("full", 1))):
        (path,) = (folder / "out/runs/t-logp-20").glob(f"*/{arm}/config.json")
        settings = json.loads(path.read_text())["settings"]
        assert (settings["training"], settings["epochs"]) == expected
        assert settings["init"] == "random"


def test_a_second_start_repeats_nothing_and_a_lost_run_is_made_again(folder, monkeypatch):
    before = (folder / "out/table.csv").read_text()
    lost = next((folder / "out/runs/t-logp-all").glob("*/random/seed-1/results.json"))
    kept = next((folder / "out/runs/t-logp-all").glob("*/random/seed-0/results.json"))
    stamp, text = kept.stat().st_mtime_ns, lost.read_text()
    lost.unlink()
    run(folder)
    assert kept.stat().st_mtime_ns == stamp and lost.read_text() == text
    assert (folder / "out/table.csv").read_text() == before


def test_a_run_that_fails_keeps_no_other_from_being_done_and_compared(folder, tmp_path):
    recipes = {"fast": ["lr=1e30"]}
    plan = PLAN | {"seeds": 1, "recipes": recipes, "arms": ["fast random", "pretrained", "random"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    given = (tmp_path / "plan.json", folder, checkpoints(folder), tmp_path / "out")
    with pytest.raises(MsdeError, match="2 problems:\n.*/fast_random: .*give a smaller lr"):
        run_suite(*given, draws=50)
    assert len(read(tmp_path / "out/table.csv")) == 4
    assert len(read(tmp_path / "out/comparisons.csv")) == 3


def test_an_error_that_was_not_foreseen_keeps_no_other_run_from_being_compared(
    folder, tmp_path, monkeypatch
):
    plan = PLAN | {"seeds": 1, "arms": ["pretrained", "random", "ecfp + ridge"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    def fail(*arguments):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setitem(suite.ESTIMATORS, "ridge", fail)
    given = (tmp_path / "plan.json", folder, checkpoints(folder), tmp_path / "out")
    with pytest.raises(MsdeError, match="RuntimeError: CUDA out of memory"):
        run_suite(*given, draws=50)
    assert len(read(tmp_path / "out/table.csv")) == 4 and (tmp_path / "out/table.md").exists()


def test_runs_in_processes_take_the_gpus_in_turn(monkeypatch):
    ranks = []
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "")
    monkeypatch.setattr(runs_of_suites, "execute", lambda: ranks.append(os.environ["LOCAL_RANK"]))
    for number in range(3):
        runs_of_suites._execute_alone(number)
    assert ranks == ["0", "1", "2"]


def test_forces_are_compared_by_their_errors(folder, tmp_path):
    write_trajectory(folder / "ethanol.npz")
    convert([folder / "ethanol.npz"], tmp_path / "seen", options=Options(keep_hydrogens=True))
    task = {"task": "md17-ethanol", "data": "ethanol.npz", "arms": ["pretrained", "random"],
            "settings": ["train=8", "valid=4"]}  # fmt: skip
    splits = [["split_seed=0"], ["split_seed=1"]]
    plan = {"tasks": [task], "settings": ["epochs=1"], "splits": splits}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run_suite(
        tmp_path / "plan.json", folder, checkpoints(folder), tmp_path / "out",
        pretraining=[tmp_path / "seen"], draws=50,
    )  # fmt: skip
    errors = {
        (row["split"], row["arm"]): float(row["value"])
        for row in read(tmp_path / "out/table.csv")
        if row["metric"] == "force_mae"
    }
    ratios = [
        np.log(errors[f"split_seed={n}", "pretrained"] / errors[f"split_seed={n}", "random"])
        for n in range(2)
    ]
    (row,) = read(tmp_path / "out/comparisons.csv")
    assert float(row["log_ratio"]) == pytest.approx(np.mean(ratios)) and row["pairs"] == "2"
    assert row["molecules"] == "all"  # all frames are of a molecule that pretraining has seen
    assert "60 (frames; forces are not compared" in (tmp_path / "out/table.md").read_text()


@pytest.mark.slow
def test_runs_on_a_dask_cluster_give_the_same_rows(folder, tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    small = PLAN | {"seeds": 1, "arms": ["pretrained", "random", "ecfp + ridge"]}
    (tmp_path / "plan.json").write_text(json.dumps(small))
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    given = (tmp_path / "plan.json", folder, checkpoints(folder))
    with distributed.LocalCluster(**options, silence_logs=50) as cluster:
        executor = f"dask:{cluster.scheduler_address}"
        run_suite(*given, tmp_path / "there", draws=50, executor=executor)
    run_suite(*given, tmp_path / "here", draws=50)
    assert read(tmp_path / "there/table.csv") == read(tmp_path / "here/table.csv")
    assert len(read(tmp_path / "here/table.csv")) == 6


def test_another_plan_in_the_same_folder_is_refused(folder, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"seeds": 3}))
    with pytest.raises(MsdeError, match="holds the runs of another plan"):
        run_suite(tmp_path / "plan.json", folder, checkpoints(folder), folder / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"arms": ["best"]}, "unknown arm 'best', expected one of pretrained"),
        ({"task": []}, "unknown key 'task', expected arms, recipes, seeds"),
        ({"recipes": {"frozen": []}}, "'frozen' cannot name a recipe"),
        ({"recipes": {"slow": ["epocs=1"]}, "arms": ["slow random"]}, "unknown key 'epocs'"),
        ({"recipes": {"slow": "lr=1"}}, "recipe 'slow' is 'lr=1', expected a list"),
        ({"recipes": ["slow"]}, "'recipes' is .'slow'., expected an object"),
        ({"settings": ["epocs=1"]}, "unknown key 'epocs'; did you mean 'epochs'"),
        ({"tasks": [{"task": "esol"}]}, "'data' is missing"),
        ({"seeds": 0}, "'seeds' is 0, expected a number"),
        ({"arms": ["random", "chosen random"]}, "chosen random needs two arms to choose from"),
        ({"settings": "epochs=1"}, "'settings' is 'epochs=1', expected a list"),
        ({"tasks": PLAN["tasks"] * 2}, "two designs are named t-logp-20"),
        ({"splits": ["split=random"]}, "a split is 'split=random', expected a list"),
        ({"arms": ["random", "random"]}, "two runs have the same name, t-logp-20"),
        ({"splits": [["split=column", "split_column=a"]]}, "cannot split t-logp-20 by a column"),
        ({"splits": [["split_seed=0"], ["split_seed=1"]]}, "two splits of t-logp-all are the same"),
        ({"tasks": MD17}, "cannot learn forces"),
        ({"settings": [5]}, "a member of 'settings' is 5, expected text"),
        ({"splits": [[{"split": "random"}]]}, "a member of a split is .'split': 'random'., expec"),
        ({"recipes": {"slow": [1]}}, "a member of recipe 'slow' is 1, expected text"),
        ({"tasks": [{"task": ["esol"], "data": "t.csv"}]}, "'task' is .'esol'., expected text"),
        ({"tasks": [{"task": "esol", "data": 5}]}, "'data' is 5, expected text"),
        ({"tasks": [{"task": "esol", "data": "a", "labels": ["5"]}]}, "'labels' holds '5', expec"),
        ({"tasks": [{"task": "esol", "data": "a", "labels": [True]}]}, "'labels' holds True, exp"),
        (
            {"tasks": [{"task": "esol", "data": "a", "group": ["g"]}]},
            "'group' is .'g'., expected t",
        ),
        ({"seeds": True}, "'seeds' is True, expected a number"),
        ({"splits": []}, "'splits' is empty, expected at least one"),
        ({"arms": []}, "'arms' is empty, expected at least one"),
        ({"tasks": []}, "'tasks' is empty, expected at least one"),
        ({"tasks": [{"task": "esol", "data": "a", "labels": []}]}, "'labels' is empty, expected"),
        ({"recipes": {"slow": ["lr=1", "split_seed=7"]}}, "recipe 'slow' sets split_seed, but all"),
        ({"recipes": {"few": [" labels=7"]}}, "recipe 'few' sets labels, but all arms are trained"),
        ({"recipes": {"geom": ["view=3d"]}, "arms": ["geom random"]}, "geom random changes the v"),
        ({"splits": [["view=3d"]]}, "changes the view of t-logp-20.*give view= in 'settings'"),
        (
            {"tasks": TWO_FILES},
            "custom is read from two files .* name, a/t.csv and b/t.csv; rename",
        ),
    ],
)
def test_a_plan_is_checked_before_anything_runs(tmp_path, change, message):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | change))
    with pytest.raises(MsdeError, match=message):
        read_plan(tmp_path / "plan.json", ["pretrained", "other"])


@pytest.mark.parametrize("name", ["random", "ecfp", "frozen", "frozen mine", "chosen", "a and b"])
def test_a_checkpoint_has_a_name_that_means_nothing_else(folder, name):
    with pytest.raises(MsdeError, match=f"--checkpoint {name}=DIR: '{name}' means something else"):
        read_plan(folder / "plan.json", ["pretrained", "other", name])
