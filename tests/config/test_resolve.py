import json

import pytest

from msde.config import from_dict, make_config, to_dict
from msde.data.partition import SlotSize
from msde.errors import MsdeError
from msde.training.plan import slot_size


def test_overrides_win_over_files_and_files_over_presets(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"optim": {"lr": 3e-4, "schedule": "cosine"}, "run": {"seed": 5}}))
    config = make_config("paper", path, ["optim.lr=1e-3", "run.steps=7", "run.steps=null"])
    assert config.optim.lr == 1e-3
    assert config.optim.schedule == "cosine"
    assert config.run.seed == 5 and config.run.steps is None
    assert config.model.hidden_dim == 300


def test_round_trip_through_json():
    config = make_config(
        "paper", overrides=["model.conformer.sde.kind=VP", "data.molecules_per_slot=9"]
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("hidden_dim=64", "did you mean 'model.hidden_dim'"),
        ("run.steps=two", "run.steps is 'two', expected int"),
        ("run.steps=1.5", "expected int"),
        ("run.steps=0", "run.steps must be positive"),
        ("optim.schedule=cosin", "expected one of constant, cosine, linear"),
        ("model.conformer.num_heads=5", "must divide"),
        ("model.topology.sde.sigma_min=2", "sigma_min < sigma_max"),
        ("steps", "not of the form key=value"),
        ("model.hidden_dim=0", "model.hidden_dim must be at least 1"),
        ("model.gin.dropout=2", "model.gin.dropout must be in [0, 1)"),
        ("optim.beta1=2", "optim.beta1 must be in [0, 1)"),
        ("model.schnet.num_gaussians=1", "must be at least 2"),
        ("data.workers=-1", "data.workers must be at least 0"),
        ("run.epochs=Infinity", "run.epochs is inf, expected a finite number"),
        ("optim.lr=NaN", "optim.lr is nan, expected a finite number"),
        (f"optim.lr=1{400 * '0'}", "expected a finite number"),
        ("loss.coefficient_2d_to_3d=-1", "loss.coefficient_2d_to_3d must be at least 0"),
        ("loss.displacement_std=0", "loss.displacement_std must be positive"),
        ("optim.scale_encoder_3d=-1", "optim.scale_encoder_3d must be at least 0"),
        ("run.seed=-1", "run.seed must be in [0, 2^64)"),
        ("run.spike_factor=0.5", "run.spike_factor must be 0 or more than 1"),
        ("model.topology.time_dim=3", "model.topology.time_dim must be even"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(MsdeError) as error:
        make_config("paper", overrides=[override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_one_objective_at_least_is_needed():
    names = ("contrastive", "2d_to_3d", "3d_to_2d")
    off = [f"loss.coefficient_{name}=0" for name in names]
    with pytest.raises(MsdeError, match="there is nothing to learn"):
        make_config(overrides=off)
    assert make_config(overrides=[*off, "loss.coefficient_displacements=1"])


@pytest.mark.parametrize(
    "other",
    ["run.activation_checkpointing=true", "data.atoms_per_slot=99", "loss.negatives=ranks"],
)
@pytest.mark.parametrize("repeated", ["cuda_graphs", "compile"])
def test_steps_that_repeat_exclude_what_changes_a_step(repeated, other):
    make_config("paper", overrides=[f"run.{repeated}=true"])
    with pytest.raises(MsdeError, match=f"run.{repeated} works without"):
        make_config("paper", overrides=[f"run.{repeated}=true", other])


def test_unknown_presets_name_the_nearest():
    with pytest.raises(MsdeError, match="unknown preset 'papr'; did you mean 'paper'"):
        make_config("papr")


def test_slots_share_the_molecules_of_a_step():
    config = make_config("paper")
    assert slot_size(config, 1) == SlotSize(molecules=256)
    assert slot_size(config, 8) == SlotSize(molecules=32)
    with pytest.raises(MsdeError, match="use a multiple of 3"):
        slot_size(config, 3)
    config = make_config("paper", overrides=["data.molecules_per_slot=10"])
    assert slot_size(config, 3) == SlotSize(molecules=10)
    config = make_config("paper", overrides=["data.atoms_per_slot=4000"])
    assert slot_size(config, 3) == SlotSize(atoms=4000)


def test_renamed_keys_are_errors_that_name_the_new_one_but_stored_ones_load():
    with pytest.raises(MsdeError, match="run.max_left_out is called run.max_skipped_steps now"):
        make_config(overrides=["run.max_left_out=3"])
    assert from_dict({"run": {"max_left_out": 3}}).run.max_skipped_steps == 3
