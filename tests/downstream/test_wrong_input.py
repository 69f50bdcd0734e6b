"""What cannot be fine-tuned is an error of one line that says what to do."""

import subprocess
import sys

import pytest

from fixtures.downstream import finetune, save_checkpoint, smiles, write_table, write_trajectory
from fixtures.launching import ENVIRONMENT
from fixtures.models import make_small
from fixtures.paths import LAUNCH
from msde.checkpoints.weights import save_weights
from msde.data.manifest import read_manifest
from msde.data_tools.models.finetuning import task_shards
from msde.data_tools.options import Options
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task
from msde.errors import MsdeError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def table(folder, **columns):
    """A table of 30 SMILES with columns, each a function of the row's number."""
    path = folder / "t.csv"
    lines = [",".join(["smiles", *columns])]
    for number, text in enumerate(smiles(30)):
        lines.append(",".join([text, *(str(make(number)) for make in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "columns, targets, metric, message",
    [
        ({"a": lambda n: ""}, ["a"], None, "label a has no value in any of 30 molecules"),
        ({"a": lambda n: n}, ["b"], None, "has no label 'b', found 'smiles', 'a'$"),
        ({"a": lambda n: n if n < 20 else "high"}, ["a"], None, "line 22: label a is not a number"),
        ({"a": lambda n: 1}, ["a"], "roc_auc", "no target has both classes among the 24 molecules"),
        (
            {"a": lambda n: n - 0.5 if n > 27 else n % 2},
            ["a"],
            "roc_auc",
            "label a is neither 0 nor 1 in 2 of 30 molecules, 27.5 in one",
        ),
        ({"a": lambda n: (-1) ** n * 1e308}, ["a"], None, "label a has values up to 1e.308, of wh"),
        ({"a": lambda n: n}, ["a"], "accuracy", "--metric is 'accuracy', expected one of"),
        ({"a": lambda n: n}, ["a", "c"], "force_mae", "force_mae needs the label of the energies"),
        ({"name": lambda n: n}, [], None, "has no labels; custom needs one"),
    ],
)
def test_labels_that_cannot_be_learned(checkpoint, tmp_path, columns, targets, metric, message):
    with pytest.raises(MsdeError, match=message) as caught:
        data = table(tmp_path, **columns)
        finetune(data, checkpoint, tmp_path / "out", targets=targets, metric=metric)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_no_valid_molecule(checkpoint, tmp_path):
    (tmp_path / "t.csv").write_text("smiles,a\nxyz,1\nCC(,2\n")
    with pytest.raises(MsdeError, match="2 rejected: cannot be parsed.; the reasons"):
        finetune(tmp_path / "t.csv", checkpoint, tmp_path / "out", targets=["a"])


@pytest.mark.parametrize("view, other", [("3d", "2d"), ("2d", "3d")])
def test_a_network_without_an_encoder_does_not_fit_a_task_that_needs_it(tmp_path, view, other):
    unused = "3d_to_2d" if view == "3d" else "2d_to_3d"
    model = make_small("base", "loss.coefficient_contrastive=0", f"loss.coefficient_{unused}=0")
    save_weights(model.state_dict(), model.config, tmp_path / "checkpoint")
    data = write_table(tmp_path / "t.csv", 30)
    message = f"was pretrained without its {view.upper()} encoder.*give view={other}"
    with pytest.raises(MsdeError, match=message):
        finetune(data, tmp_path / "checkpoint", tmp_path / "out", f"view={view}")
    assert not (tmp_path / "out").exists()


def test_what_an_error_says_is_done_with_the_same_output(checkpoint, tmp_path):
    """Neither the part with one class nor the view is kept before all is checked."""
    model = make_small("base", "loss.coefficient_contrastive=0", "loss.coefficient_3d_to_2d=0")
    save_weights(model.state_dict(), model.config, tmp_path / "flat")
    parts = lambda n: "train" if n < 20 else ("valid", "test")[n % 2]  # noqa: E731
    data = table(tmp_path, a=lambda n: n % 2, part=parts)
    given = (data, tmp_path / "flat", tmp_path / "out", "epochs=1")
    classes = {"targets": ["a"], "metric": "roc_auc"}
    with pytest.raises(MsdeError, match="give view=2d"):
        finetune(*given, "view=3d", **classes)
    with pytest.raises(MsdeError, match="no target has both classes among the 5 molecules.*split="):
        finetune(*given, "split=column", "split_column=part", **classes)
    assert finetune(*given, "split=random", **classes)["settings"]["split"] == "random"


@pytest.mark.parametrize("text", ['{"model": {}}', "[]"])
def test_an_output_with_another_config_is_refused_and_left_alone(checkpoint, tmp_path, text):
    """As a folder of weights."""
    data = write_table(tmp_path / "t.csv", 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text(text)
    with pytest.raises(MsdeError, match="out/config.json .*(is not that of|expected)") as caught:
        finetune(data, checkpoint, tmp_path / "out")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_shards_without_positions_do_not_fit_the_3d_encoder(checkpoint, tmp_path):
    from msde.data_tools.convert import convert

    data = write_table(tmp_path / "t.csv", 30)
    convert([data], tmp_path / "data", options=Options(conformers=0))
    with pytest.raises(MsdeError, match="view=3d needs positions.*give view=2d"):
        finetune(tmp_path / "data", checkpoint, tmp_path / "out", "view=3d")


def test_forces_need_the_hydrogens(checkpoint, tmp_path):
    data = write_trajectory(tmp_path / "ethanol.npz")
    given = {"task": "md17-ethanol", "options": Options(keep_hydrogens=False)}
    with pytest.raises(MsdeError, match="hydrogens are removed.*convert with --keep-hydrogens"):
        finetune(data, checkpoint, tmp_path / "out", **given)


def test_a_folder_without_the_tasks_file(checkpoint, tmp_path):
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data/t.csv", 5)
    with pytest.raises(MsdeError, match="holds 0 files named like esol .none., expected one"):
        finetune(tmp_path / "data", checkpoint, tmp_path / "out", task="esol", targets=None)


def test_a_folder_has_the_tasks_file_under_its_published_name(tmp_path):
    task = get_task("esol")
    table = tmp_path / "data/delaney-processed.csv"
    table.parent.mkdir()
    table.write_text("Compound ID,smiles,measured log solubility in mols per litre\nb,CCO,1.1\n")
    (table.parent / "SAMPL.csv").write_text("iupac,smiles,expt\nb,CCO,-5\n")
    shards = task_shards(task, table.parent, tmp_path / "cache", make_settings(task, []))
    assert read_manifest(shards.root)["source"]["files"] == ["delaney-processed.csv"]


def test_the_command_ends_with_one_line_and_code_2(checkpoint, tmp_path):
    data = write_table(tmp_path / "t.csv", 10)
    arguments = ["--task=custom", f"--data={data}", f"--checkpoint={checkpoint}"]
    arguments += [f"--output={tmp_path / 'out'}", "--targets=pIC50"]
    done = subprocess.run(
        [sys.executable, LAUNCH / "finetune.py", *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert "has no label 'pIC50', found 'smiles', 'id', 'logp', 'is_greasy', 'part'" in done.stderr
