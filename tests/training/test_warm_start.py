"""--init-from: the model is that of the weights, and what does not fit is told at once."""

import json
import shutil

import pytest
import torch

from fixtures.commands import run_here
from fixtures.models import make_small
from msde.checkpoints import snapshots, weights
from msde.config import to_dict
from msde.training.engine import make_model
from msde.training.start import resolve

HEAD = "loss.coefficient_displacements"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of weights without and with the head that finds displacements; the first is a run."""
    root = tmp_path_factory.mktemp("weights")
    for name, coefficient in (("run/best", 0), ("with_head", 0.5)):
        model = make_small("base", f"{HEAD}={coefficient}")
        weights.save_weights(model.state_dict(), model.config, root / name)
        (root / "run/config.json").write_text(json.dumps(to_dict(model.config)))
    return {"run": root / "run", "best": root / "run/best", "with_head": root / "with_head"}


def described(shard_dir, *arguments):
    """What a dry run says and how it ends, before it would have joined other ranks."""
    common = ["--data", shard_dir, "--output", "run", "--dry-run", "data.molecules_per_step=32"]
    return run_here("msde.launch.pretrain", *common, *arguments)


@pytest.mark.parametrize("name, coefficient", [("with_head", 0.5), ("run", 0.0), ("best", 0.0)])
def test_the_model_is_that_of_the_weights_whatever_the_preset(shard_dir, stored, name, coefficient):
    done = described(shard_dir, "--preset=paper", "--init-from", stored[name])
    assert done.returncode == 0, done.stderr
    assert f'"coefficient_displacements": {coefficient}' in done.stdout


@pytest.mark.parametrize("name, coefficient", [("with_head", 0), ("best", 1), ("with_head", 2)])
def test_the_head_that_finds_displacements_can_be_added_and_left_out(
    shard_dir, stored, caplog, name, coefficient
):
    override = f"{HEAD}={coefficient}"
    assert not described(shard_dir, "--init-from", stored[name], override).returncode
    with caplog.at_level("INFO"):
        config = resolve("paper", None, [override], stored[name])
        found = make_model(config, stored[name]).state_dict()
    kept = weights.read_state(stored[name])
    assert all(torch.equal(found[key], kept[key]) for key in found.keys() & kept.keys())
    differ = found.keys() ^ kept.keys()
    assert all(key.startswith(weights.HEAD) for key in differ) and bool(differ) == (coefficient < 2)
    said = {0: "is left out", 1: "starts from the seed"}.get(coefficient)
    assert [said in line for line in caplog.messages if "the head" in line] == [True] * bool(said)


def test_weights_that_do_not_fit_are_told_before_anything_starts(shard_dir, stored, tmp_path):
    for arguments, said in (
        (["--init-from", stored["best"], "model.schnet.num_filters=8"], "leave out the settings"),
        (["--init-from", stored["best"], "model.gin.num_layers=9"], "is missing; leave out"),
        (["--init-from", stored["run"].parent], "cannot be read"),
    ):
        done = described(shard_dir, *arguments)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "config.json").write_text((stored["best"] / "config.json").read_text())
    assert "holds no model.safetensors" in described(shard_dir, "--init-from", tmp_path).stderr


def test_a_run_that_is_resumed_needs_no_weights_to_start_from(shard_dir, stored, tmp_path):
    """With the command that it was started by, when those weights are gone."""
    gone, output = tmp_path / "gone", tmp_path / "run"
    refused = described(shard_dir, "--output", output, "--init-from", gone)
    assert refused.returncode == 2 and "does not exist" in refused.stderr
    shutil.copytree(stored["with_head"], output / "best")
    (output / "checkpoints/new").mkdir(parents=True)
    snapshots.publish(
        output / "checkpoints/new", output / "checkpoints/step-000000001", {"files": {}, "slots": 1}
    )
    done = described(shard_dir, "--output", output, "--init-from", gone)
    assert done.returncode == 0, done.stderr
    assert "--init-from is not used" in done.stderr
    assert '"coefficient_displacements": 0.5' in done.stdout
