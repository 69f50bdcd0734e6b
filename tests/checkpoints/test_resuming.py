"""What a run takes from its checkpoint and what from its configuration; its folder is its own."""

import json

import pytest
import torch
import torch.distributed as dist

from fixtures.launching import ds_config
from fixtures.models import make_small
from msde.checkpoints import engine_state
from msde.checkpoints.weights import load_weights
from msde.cluster.ranks import map_environment
from msde.config import deepspeed, to_dict
from msde.errors import DiskFull, MsdeError
from msde.training.engine import make_engine, start_process_group
from msde.training.loop import decides_validation
from msde.training.run import only_run_in, prepare_output


@pytest.fixture(scope="module")
def alone():
    """A process group of this process, as a run makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in map_environment({}).items():
            patch.setenv(name, value)
        start_process_group(60)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("before, now", [(0.0, 1.0), (1.0, 0.5), (1.0, 0.0)])
def test_the_limit_of_gradients_is_that_of_the_run_which_resumes(alone, tmp_path, before, now):
    """ZeRO 1 of DeepSpeed takes that of the checkpoint, and refuses one where there is none now."""
    path = ds_config(tmp_path, 1, slots=1)
    values = deepspeed.load(path, 1, None)
    models = [make_small("paper") for _ in range(2)]
    writer, reader = (
        make_engine(model, values | {"gradient_clipping": limit})
        for model, limit in zip(models, (before, now), strict=True)
    )
    engine_state.save(writer, tmp_path, models[0].config, None, {"step": 1})
    engine_state.load(reader, models[1], tmp_path / "step-000000001", False, 0)
    assert reader.optimizer.clip_grad == reader.gradient_clipping() == now


def test_a_change_of_deepspeeds_settings_is_said(tmp_path, caplog):
    config = make_small("paper").config
    for limit in (0.0, 1.0, 1.0):
        prepare_output(tmp_path, config, {"gradient_clipping": limit, "train_batch_size": limit})
    assert caplog.messages == ["DeepSpeed's gradient_clipping was 0.0, is 1.0"]


def test_a_configuration_that_a_killed_start_cut_short_is_written_anew(tmp_path, caplog):
    config = make_small("paper").config
    prepare_output(tmp_path, config, {"gradient_clipping": 1.0})
    whole = (tmp_path / "deepspeed.json").read_bytes()
    (tmp_path / "deepspeed.json").write_bytes(whole[:9])
    prepare_output(tmp_path, config, {"gradient_clipping": 1.0})
    assert (tmp_path / "deepspeed.json").read_bytes() == whole
    assert "it is written anew" in caplog.text


def test_a_run_without_launcher_variables_says_which_are_missing(monkeypatch):
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MsdeError, match="RANK is set but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is"):
        start_process_group(60)


@pytest.mark.parametrize(
    "change, refused",
    [
        ("model.gin.num_layers=2", True),
        ("loss.coefficient_displacements=1", True),
        ("loss.temperature=0.2", False),
        ("optim.lr=1e-3", False),
    ],
)
def test_settings_that_change_the_network_are_refused(tmp_path, caplog, change, refused):
    stored, own = make_small("paper").config, make_small("paper", change).config
    (tmp_path / "config.json").write_text(json.dumps(to_dict(stored)))
    checkpoint = engine_state.Checkpoint(tmp_path, {"zero_stage": 1, "world_size": 1})
    key, changes = change.partition("=")[0], engine_state.changed_settings(checkpoint, own)
    if refused:
        with pytest.raises(MsdeError, match=f"was written with {key} = .*, this run has"):
            engine_state.check_compatible(checkpoint, changes, 1, 1)
    else:
        assert engine_state.check_compatible(checkpoint, changes, 1, 1) is False
        assert f"written with {key} = " in caplog.text


def test_held_out_losses_of_another_objective_are_not_compared():
    changed = ("loss.coefficient_2d_to_3d", "run.ema_decay", "data.max_validation_molecules")
    assert all(map(decides_validation, changed))
    assert not any(map(decides_validation, ("optim.lr", "run.steps", "data.workers")))


def test_two_runs_do_not_share_a_folder(alone, tmp_path, monkeypatch):
    monkeypatch.setattr("msde.files.LOCK_SECONDS", 0.2)
    with only_run_in(tmp_path / "run"):
        with pytest.raises(MsdeError, match="another process trains in .*run; wait for its end"):
            with only_run_in(tmp_path / "run"):
                pass
    assert not (tmp_path / "run").exists()  # nothing was written
    with only_run_in(tmp_path / "run"):
        (tmp_path / "run/config.json").write_text("{}")
    assert (tmp_path / "run/config.json").exists()


def test_the_best_weights_are_replaced_as_a_whole_or_not_at_all(alone, tmp_path, monkeypatch):
    folder, models = tmp_path / "best", [make_small("paper", f"run.seed={n}") for n in range(3)]
    for model in models[:2]:
        with torch.no_grad():
            next(model.parameters()).add_(len(list(tmp_path.iterdir())))
        engine_state.replace_weights(model, model.config, folder, [])
    assert [path.name for path in tmp_path.iterdir()] == ["best"]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msde.checkpoints.weights.save_file", full)
    with pytest.raises(DiskFull, match="disk full: .*best needs"):
        engine_state.replace_weights(models[2], models[2].config, folder, [])
    kept = load_weights(folder)  # with its MANIFEST
    assert torch.equal(next(kept.parameters()), next(models[1].parameters()))
