import contextlib
import json

import pytest

from msde.config import deepspeed, from_dict, make_config, to_dict
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
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(MsdeError) as error:
        make_config("paper", overrides=[override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    ["run.activation_checkpointing=true", "data.atoms_per_slot=99", "loss.negatives=ranks"],
)
def test_what_cannot_be_replayed_is_refused(other):
    make_config("paper", overrides=["run.cuda_graphs=true"])
    with pytest.raises(MsdeError, match="run.cuda_graphs works without"):
        make_config("paper", overrides=["run.cuda_graphs=true", other])


def test_unknown_presets_name_the_nearest():
    with pytest.raises(MsdeError, match="unknown preset 'papr'; did you mean 'paper'"):
        make_config("papr")


@pytest.mark.parametrize("name", ["cpu_debug", "zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("world_size", [1, 6])
def test_shipped_engine_configurations(name, world_size):
    values = deepspeed.load(deepspeed.shipped_config(name), world_size)
    assert values["train_batch_size"] == world_size
    assert values["gradient_accumulation_steps"] == 1
    assert values["gradient_clipping"] == 0


def test_a_run_keeps_the_slots_that_it_was_begun_with():
    path = deepspeed.shipped_config("zero1")
    values = deepspeed.load(path, 2, begun_with=8)
    assert (values["train_batch_size"], values["gradient_accumulation_steps"]) == (8, 4)
    with pytest.raises(MsdeError, match="8 slots, which 3 ranks cannot share evenly"):
        deepspeed.load(path, 3, begun_with=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gradient_cliping": 1},
            "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'",
        ),
        ({"zero_optimization": {"stagee": 1}}, "did you mean 'stage'"),
        ({"optimizer": {"type": "Adam"}}, "optim.*"),
        ({"bf16": {"enabled": True}}, "torch_autocast"),
        ({"train_batch_size": 3}, "3 slots, which 2 ranks cannot share evenly"),
        ({"train_batch_size": 8, "gradient_accumulation_steps": 1}, "write 'auto'"),
        ({"train_micro_batch_size_per_gpu": 4}, "must be 1"),
        ({"torch_autocast": True}, "expected a JSON object"),
        ({"gradient_accumulation_steps": None}, "expected a positive number"),
        ({"zero_optimization": {"stage": 7}}, "expected 0 to 3"),
    ],
)
def test_bad_engine_configurations_are_named(tmp_path, changes, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changes))
    with pytest.raises(MsdeError) as error:
        deepspeed.load(path, 2)
    assert message in str(error.value) and str(path) in str(error.value)


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


def test_known_keys_are_those_of_the_installed_deepspeed():
    """An upgrade that adds or drops a key must be noticed here."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = json.loads(
        (deepspeed.resources.files("msde.config") / "deepspeed_keys.json").read_text()
    )
    fields = DeepSpeedZeroConfig.model_fields
    names = set(fields) | {field.alias for field in fields.values() if field.alias}
    deprecated = {name for name, field in fields.items() if "Deprecated" in str(field)} | {
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "legacy_stage1",
        "stage3_gather_fp16_weights_on_model_save",
    }
    assert set(known["zero_optimization"]) <= names
    assert names - deprecated <= set(known["zero_optimization"])


@pytest.mark.parametrize(("stage", "fits"), [("zero2", True), ("zero3", False)])
def test_cuda_graphs_exclude_zero_3(stage, fits):
    config = make_config("paper", overrides=["run.cuda_graphs=true"])
    values = deepspeed.load(deepspeed.shipped_config(stage), 1)
    with contextlib.nullcontext() if fits else pytest.raises(MsdeError, match="ZeRO 0 to 2 only"):
        deepspeed.check_together(config, values)


def test_renamed_keys_are_errors_that_name_the_new_one_but_stored_ones_load():
    with pytest.raises(MsdeError, match="run.max_left_out is called run.max_skipped_steps now"):
        make_config(overrides=["run.max_left_out=3"])
    assert from_dict({"run": {"max_left_out": 3}}).run.max_skipped_steps == 3
