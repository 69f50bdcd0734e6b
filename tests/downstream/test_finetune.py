"""Fine-tuning: results, predictions, resuming to the bit, and what is frozen stays."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score, root_mean_squared_error

from fixtures.downstream import (
    QUICK,
    finetune,
    read_predictions,
    read_results,
    save_checkpoint,
    write_table,
)
from fixtures.seeds import mostly_slow
from msde.data_tools.convert import convert
from msde.data_tools.options import Options
from msde.downstream import training
from msde.downstream.finetune import prepare, unfinished
from msde.downstream.heads import depths, load_model, make_model, parameter_groups
from msde.downstream.labels import read_task_data
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task
from msde.errors import MsdeError
from msde.files import file_sha256
from msde.monitor.writer import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downstream")
    write_table(folder / "t.csv", 60, missing=(3, 10))
    save_checkpoint(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def done(folder):
    output = folder / "done"
    finetune(folder / "t.csv", folder / "checkpoint", output, seeds=2)
    return output


def test_results_hold_a_value_a_seed_with_split_settings_and_checkpoint(folder, done):
    results = read_results(done)
    assert len(results["test"]["rmse"]) == len(results["valid"]["rmse"]) == 2
    assert results["seeds"] == [0, 1] and results["settings"]["epochs"] == 2
    weights = folder / "checkpoint/model.safetensors"
    assert results["checkpoint"]["sha256"] == file_sha256(weights)
    assert results["split"]["sha256"] == json.loads((done / "split.json").read_text())["sha256"]
    assert results["data"]["molecules"] == 58  # two have no label


def test_of_molecules_in_no_part_nothing_is_kept(folder, tmp_path):
    given = ["split=random", "labels=5", "readout=last", *QUICK]
    task, data = get_task("custom", ["logp"]), folder / "done/data"
    settings = make_settings(task, given)
    job = prepare(task, data, tmp_path, folder / "checkpoint", settings)
    whole = read_task_data(data, task)
    stored = json.loads((tmp_path / "split.json").read_text())
    assert len(job.data) == sum(len(stored[part]) for part in ("train", "valid", "test")) < 58
    assert job.values["data"]["molecules"] == len(whole) == 58
    for part, places in job.split.parts().items():
        assert (job.data.columns.uid[places] == whole.columns.uid[stored[part]]).all()
        np.testing.assert_array_equal(job.data.y[places], whole.y[stored[part]])


def test_the_card_of_a_model_has_data_split_and_test_metric(done):
    results, card = read_results(done), (done / "seed-1/model/README.md").read_text()
    assert card.startswith("---\n") and "Predicts `logp` of molecules" in card
    assert results["data"]["sha256"] in card and results["checkpoint"]["sha256"] in card
    parts = ", ".join(f"{results['split'][name]} {name}" for name in ("train", "valid", "test"))
    assert parts in card and f"rmse {results['test']['rmse'][1]:.4g}" in card


def test_predictions_have_the_ids_of_the_input_and_give_the_metric(folder, done):
    rows = read_predictions(done / "seed-1/predictions.csv")
    lines = (folder / "t.csv").read_text().splitlines()
    for row in rows:
        cells = lines[int(row["line"]) - 1].split(",")
        assert cells[1] == row["name"] and float(cells[2]) == float(row["logp"])
    test = [row for row in rows if row["part"] == "test"]
    y, predicted = (np.array([float(r[c]) for r in test]) for c in ("logp", "logp_predicted"))
    assert root_mean_squared_error(y, predicted) == pytest.approx(
        read_results(done)["test"]["rmse"][1], rel=1e-5
    )


def test_rows_of_several_files_name_their_file(folder, tmp_path):
    (tmp_path / "data").mkdir()
    header, *lines = (folder / "t.csv").read_text().splitlines()
    for name, part in (("a.csv", lines[:30]), ("b.csv", lines[30:])):
        (tmp_path / "data" / name).write_text("\n".join([header, *part]) + "\n")
    given = (tmp_path / "data", folder / "checkpoint", tmp_path / "out")
    finetune(*given, "epochs=1", "split=random")
    rows = read_predictions(tmp_path / "out/seed-0/predictions.csv")
    assert {row["file"] for row in rows} == {"a.csv", "b.csv"}
    for row in rows:
        line = (tmp_path / "data" / row["file"]).read_text().splitlines()[int(row["line"]) - 1]
        assert line.split(",")[1] == row["name"]


def test_predictions_keep_the_digits_of_total_energies(folder, tmp_path):
    header, *lines = (folder / "t.csv").read_text().splitlines()
    energies = [f"{text.split(',')[0]},{-406757.1234 - n / 1000}" for n, text in enumerate(lines)]
    (tmp_path / "e.csv").write_text("\n".join(["smiles,energy", *energies]) + "\n")
    given = {"targets": ["energy"], "metric": "mae"}
    finetune(tmp_path / "e.csv", folder / "checkpoint", tmp_path / "out", "epochs=1", **given)
    rows = read_predictions(tmp_path / "out/seed-0/predictions.csv")
    test = [row for row in rows if row["part"] == "test"]
    errors = [abs(float(row["energy"]) - float(row["energy_predicted"])) for row in test]
    assert np.mean(errors) == pytest.approx(read_results(tmp_path / "out")["test"]["mae"][0], 1e-3)


def test_a_seed_is_trained_by_one_process_at_a_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("msde.files.LOCK_SECONDS", 0.2)
    given = (folder / "t.csv", folder / "checkpoint", tmp_path / "out")
    with unfinished(tmp_path / "out/seed-0") as made:
        assert made is not None
        with pytest.raises(MsdeError, match="another process works on .*seed-0; wait for its end"):
            finetune(*given)
    finetune(*given)
    assert read_results(tmp_path / "out")["seeds"] == [0]
    assert not (tmp_path / "out/seed-0/.lock").exists()


def test_an_output_that_is_a_file_is_an_error_of_one_line(folder, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(MsdeError, match="--output .*out cannot be written: File exists"):
        finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "out")


def test_results_are_json_where_a_target_has_one_class(folder, tmp_path):
    """No test molecule of the second target is of class 1: there is no ROC-AUC of it."""
    rows = [line.split(",") for line in (folder / "t.csv").read_text().splitlines()[1:]]
    lines = ["smiles,a,b,part"]
    for n, row in enumerate(rows):
        part = ("train", "train", "train", "valid", "test")[n % 5]
        lines.append(f"{row[0]},{n // 5 % 2},{int(part == 'train' and n % 2)},{part}")
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    given = {"targets": ["a", "b"], "metric": "roc_auc"}
    split = ["split=column", "split_column=part", "epochs=1"]
    finetune(tmp_path / "c.csv", folder / "checkpoint", tmp_path / "out", *split, **given)
    text = (tmp_path / "out/results.json").read_text()
    results = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert results["test_per_target"]["b"] == [None] and results["test"]["roc_auc"][0] >= 0


def test_metrics_are_logged_for_every_epoch(done):
    rows = read_metrics(done / "seed-0/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss/train", "rmse/valid"} <= rows[0].keys()
    assert list((done / "seed-0/tensorboard").glob("events.*"))


def test_a_finished_run_is_not_repeated_and_more_seeds_are_added(folder, tmp_path):
    output = tmp_path / "run"
    finetune(folder / "t.csv", folder / "checkpoint", output, seeds=2)
    before = (output / "seed-0/results.json").stat().st_mtime_ns
    finetune(folder / "t.csv", folder / "checkpoint", output, seeds=3)
    assert (output / "seed-0/results.json").stat().st_mtime_ns == before
    assert read_results(output)["seeds"] == [0, 1, 2]
    finetune(folder / "t.csv", folder / "checkpoint", output, seeds=1)
    assert read_results(output)["seeds"] == [0, 1, 2]  # predictions are of all models, too


def test_a_finished_run_goes_on_when_its_folders_and_file_have_moved(folder, done, tmp_path):
    for name, root in (("run", done), ("checkpoint", folder / "checkpoint")):
        shutil.copytree(root, tmp_path / name)
    shutil.copyfile(folder / "t.csv", tmp_path / "t.csv")  # with a new time of modification
    before = (tmp_path / "run/seed-0/results.json").stat().st_mtime_ns
    finetune(tmp_path / "t.csv", tmp_path / "checkpoint", tmp_path / "run", seeds=2)
    assert (tmp_path / "run/seed-0/results.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(folder, done):
    with pytest.raises(MsdeError, match="holds a fine-tuning with another settings"):
        finetune(folder / "t.csv", folder / "checkpoint", done, "lr=1e-3", seeds=2)
    changed = (
        r"settings.lr \(there 0.0001, given 0.001\), settings.dropout \(there 0.0, given 0.2\)"
    )
    with pytest.raises(MsdeError, match=changed):
        finetune(folder / "t.csv", folder / "checkpoint", done, "lr=1e-3", "dropout=0.2", seeds=2)
    with pytest.raises(
        MsdeError, match=r"another rule than .* rule.split_seed \(there 0, given 3\); choose"
    ):
        finetune(folder / "t.csv", folder / "checkpoint", done, "split_seed=3", seeds=2)


@pytest.mark.parametrize("kind", ["table", "shards"])
def test_a_label_whose_name_holds_commas_is_a_target(folder, tmp_path, kind):
    text = (folder / "t.csv").read_text().replace("logp", '"Activity, nM"')
    (tmp_path / "t.csv").write_text(text)
    data = tmp_path / "t.csv"
    if kind == "shards":
        data = tmp_path / "shards"
        convert([tmp_path / "t.csv"], data, options=Options(conformers=0))
    targets = "Activity, nM".split(",")  # as the command line does
    found = finetune(data, folder / "checkpoint", tmp_path / "out", "epochs=1", targets=targets)
    assert found["targets"] == ["Activity, nM"]
    several = ["is_greasy", " part_of_whole"]
    message = "has no label 'part_of_whole', found .*'Activity, nM', 'is_greasy'"
    with pytest.raises(MsdeError, match=message):
        finetune(data, folder / "checkpoint", tmp_path / "other", targets=several)


def test_labels_are_chosen_one_by_one_where_names_hold_commas(folder, tmp_path):
    text = (folder / "t.csv").read_text().replace("logp", '"Activity, nM"')
    (tmp_path / "t.csv").write_text(text)
    options = Options(label_columns=("Activity, nM", "is_greasy"))
    given = (tmp_path / "t.csv", folder / "checkpoint", tmp_path / "out", "epochs=1")
    found = finetune(*given, targets=(), options=options)
    assert found["targets"] == ["Activity, nM", "is_greasy"]


CLASSES = (
    "all labels are 0 or 1 and are learnt as numbers; --metric roc_auc trains a classification"
)


@pytest.mark.parametrize(
    ("target", "metric", "told"),
    [("is_greasy", None, True), ("is_greasy", "rmse", False), ("logp", None, False)],
)
def test_classes_that_are_learnt_as_numbers_are_told(
    folder, tmp_path, target, metric, told, caplog
):
    given = (folder / "t.csv", folder / "checkpoint", tmp_path / "out", "epochs=1")
    finetune(*given, targets=[target], metric=metric)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        CLASSES
    ] * told


def test_a_file_with_other_content_is_refused(folder, done, tmp_path):
    (tmp_path / "t.csv").write_text((folder / "t.csv").read_text().replace("C", "N", 1))
    with pytest.raises(MsdeError, match="holds other data or options"):
        finetune(tmp_path / "t.csv", folder / "checkpoint", done, seeds=2)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "mode",
    mostly_slow(
        [
            ["view=both", "dropout=0.3"],
            ["training=frozen"],
            ["training=staged", "head_epochs=1"],
            ["training=staged", "head_epochs=3"],
        ],
        quick=[["view=both", "dropout=0.3"], ["training=staged", "head_epochs=3"]],
    ),
)
def test_a_run_that_was_killed_ends_with_the_same_bits(folder, tmp_path, monkeypatch, mode):
    given = (*mode, "epochs=4", "save_seconds=0")
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "whole", *given)
    original = training.Trainer._train_epoch

    def killed(self):
        if self.epoch == 2:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_train_epoch", killed)
        with pytest.raises(Killed):
            finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "twice", *given)
    assert (tmp_path / "twice/seed-0/state.pt").exists()
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "twice", *given)
    whole, twice = (read_results(tmp_path / name) for name in ("whole", "twice"))
    assert whole["test"] == twice["test"] and whole["valid"] == twice["valid"]
    weights = [
        load_file(tmp_path / n / "seed-0/model/model.safetensors") for n in ("whole", "twice")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    rows = [read_metrics(tmp_path / n / "seed-0/metrics.jsonl") for n in ("whole", "twice")]
    assert rows[0] == rows[1]


def test_frozen_encoders_stay_and_full_ones_move(folder, tmp_path):
    stored = load_file(folder / "checkpoint/model.safetensors")
    name = "layers.0.mlp.0.weight"
    staged = [("staged", f"head_epochs={epochs}", "epochs=3") for epochs in (1, 2)]
    for number, (mode, *more) in enumerate([("frozen",), ("full",), *staged]):
        output = tmp_path / str(number)
        finetune(folder / "t.csv", folder / "checkpoint", output, f"training={mode}", *more)
        model = load_model(output / "seed-0/model").encoders["2d"].state_dict()
        best = read_results(output)["best_epochs"][0]  # whose weights are kept
        stays = mode == "frozen" or (mode == "staged" and best <= int(more[0][-1]))
        assert torch.equal(model[name], stored[f"encoder_2d.{name}"]) == stays


def test_the_first_stage_is_a_frozen_training(folder, tmp_path):
    rows = []
    for mode in (["frozen"], ["staged", "head_epochs=3"]):
        output = tmp_path / mode[0]
        given = [f"training={mode[0]}", *mode[1:], "epochs=4"]
        finetune(folder / "t.csv", folder / "checkpoint", output, *given)
        rows.append(read_metrics(output / "seed-0/metrics.jsonl"))
    assert rows[0][:3] == rows[1][:3] and rows[0][3] != rows[1][3]


def test_kept_statistics_of_norms_are_those_of_pretraining(folder, tmp_path):
    stored = load_file(folder / "checkpoint/model.safetensors")
    for norms in ("kept", "batch"):
        output = tmp_path / norms
        finetune(folder / "t.csv", folder / "checkpoint", output, f"norms={norms}")
        state = load_model(output / "seed-0/model").encoders["2d"].state_dict()
        statistics = [name for name in state if "running" in name]
        same = [torch.equal(state[name], stored[f"encoder_2d.{name}"]) for name in statistics]
        assert statistics and all(same) == (norms == "kept")
        moved = "norms.0.weight"  # of an affine map that is trained either way
        assert not torch.equal(state[moved], stored[f"encoder_2d.{moved}"])


def test_validation_chooses_the_epoch_and_patience_ends_the_run(folder, tmp_path):
    finetune(
        folder / "t.csv", folder / "checkpoint", tmp_path, "epochs=40", "patience=2", "lr=0.05"
    )
    rows = read_metrics(tmp_path / "seed-0/metrics.jsonl")
    values = [row["rmse/valid"] for row in rows]
    results = read_results(tmp_path)
    assert len(values) < 40 and len(values) == results["best_epochs"][0] + 2
    assert results["valid"]["rmse"][0] == min(values)
    assert values[results["best_epochs"][0] - 1] == min(values)


def test_pretrained_and_random_encoders_start_with_the_same_head(folder, done, tmp_path):
    task = get_task("custom", ["logp"])
    settings = make_settings(task)
    data = done / "data"
    job = prepare(task, data, tmp_path, folder / "checkpoint", settings)
    one = make_model(job.network, job.facts, job.weights, seed=3)
    other = make_model(job.network, job.facts, None, seed=3)
    assert torch.equal(one.head.weight, other.head.weight)
    name = "layers.0.mlp.0.weight"
    first, second = (m.encoders["2d"].state_dict()[name] for m in (one, other))
    assert not torch.equal(first, second)


def test_rates_fall_towards_the_input_by_layer(folder, done, tmp_path):
    task = get_task("custom", ["logp"])
    settings = make_settings(task, ["training=layerwise", "layer_decay=0.5", "lr=1", "view=both"])
    plain = make_settings(task)
    job = prepare(task, done / "data", tmp_path, folder / "checkpoint", plain)
    facts = dataclasses.replace(job.facts, views=("2d", "3d"))
    model = make_model(job.network, facts, None, seed=0)
    rate = {id(p): g["lr"] for g in parameter_groups(model, settings) for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))  # every parameter is in one group
    assert rate[id(model.head.weight)] == 1
    for encoder in model.encoders.values():
        found = depths(encoder)
        last = max(found.values())
        for name, parameter in encoder.named_parameters():
            assert rate[id(parameter)] == 0.5 ** (last - found[name])
    gin = depths(model.encoders["2d"])
    assert gin["atom_embedding.weight"] == 0 and gin["layers.4.mlp.0.weight"] == 5


def test_the_head_can_see_all_layers_of_a_pretrained_encoder(folder, done, tmp_path):
    """The embedding and the two layers side by side, without other weights."""
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "o", "readout=concat")
    model, last = (load_model(path / "seed-0/model") for path in (tmp_path / "o", done))
    layers = len(last.encoders["2d"].layers) + 1
    assert model.head.in_features == layers * last.head.in_features
    assert model.encoders.state_dict().keys() == last.encoders.state_dict().keys()


def test_a_folder_of_an_earlier_release_lacks_new_settings(folder, tmp_path):
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path, "training=frozen")
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["settings"]["readout"]
    path.write_text(json.dumps(values))
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path, "training=frozen", seeds=2)
    assert read_results(tmp_path)["seeds"] == [0, 1]


def test_both_views_and_classification(folder, tmp_path):
    results = finetune(
        folder / "t.csv", folder / "checkpoint", tmp_path, "view=both", "split=random",
        targets=["is_greasy"], metric="roc_auc",
    )  # fmt: skip
    rows = read_predictions(tmp_path / "seed-0/predictions.csv")
    assert all(0 < float(row["is_greasy_predicted"]) < 1 for row in rows)
    test = [row for row in rows if row["part"] == "test"]
    y, predicted = ([float(r[c]) for r in test] for c in ("is_greasy", "is_greasy_predicted"))
    assert results["test"]["roc_auc"][0] == pytest.approx(roc_auc_score(y, predicted))
    model = load_model(tmp_path / "seed-0/model")
    widths = [model.encoders[view].output_dim for view in ("2d", "3d")]
    assert model.head.in_features == sum(widths) and min(widths) > 0


def test_a_column_of_the_table_divides_it(folder, tmp_path):
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path, "split=column", "split_column=part")
    for row in read_predictions(tmp_path / "seed-0/predictions.csv"):
        number = int(row["name"][1:])
        assert row["part"] == ["train", "train", "train", "valid", "test"][number % 5]


def test_ranks_share_the_seeds(folder, tmp_path):
    for rank, done in ((0, [0, 2]), (1, [0, 1, 2])):
        results = finetune(
            folder / "t.csv", folder / "checkpoint", tmp_path, seeds=3, rank=rank, world_size=2
        )
        assert results["seeds"] == done
    assert len(list(tmp_path.glob("seed-*"))) == 3


def test_targets_are_scaled_by_the_training_part_alone(folder, done, tmp_path):
    task = get_task("custom", ["logp"])
    settings = make_settings(task, ["split=random"])
    job = prepare(task, done / "data", tmp_path, folder / "checkpoint", settings)
    y = job.data.y[job.split.train, 0]
    assert job.scaling.mean[0] == pytest.approx(y.mean())
    assert job.scaling.scale[0] == pytest.approx(y.std())
