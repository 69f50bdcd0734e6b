import contextlib
import json

import pytest

from msde.config import deepspeed, make_config
from msde.errors import MsdeError
from msde.training.memory import state_memory


@pytest.mark.parametrize("name", ["cpu_debug", "zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("world_size", [1, 6])
def test_shipped_engine_configurations(name, world_size):
    values = deepspeed.load(deepspeed.shipped_config(name), world_size)
    assert values["train_batch_size"] == world_size
    assert values["gradient_accumulation_steps"] == 1
    assert values["gradient_clipping"] == 0


def test_a_run_keeps_the_slots_that_it_was_begun_with():
    path = deepspeed.shipped_config("zero1")
    values = deepspeed.load(path, 2, resumed_slots=8)
    assert (values["train_batch_size"], values["gradient_accumulation_steps"]) == (8, 4)
    with pytest.raises(MsdeError, match="8 slots, which 3 ranks cannot share evenly"):
        deepspeed.load(path, 3, resumed_slots=8)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "bf16", "torch.bfloat16"])
def test_autocast_is_to_bfloat16_by_any_of_its_names_and_by_none(tmp_path, dtype):
    path = tmp_path / "ds.json"
    named = {} if dtype is None else {"dtype": dtype}
    path.write_text(json.dumps({"torch_autocast": {"enabled": True, **named}}))
    values = deepspeed.load(path, 1)
    assert deepspeed.in_bfloat16(values) and values["torch_autocast"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("given", [{}, {"throughput": {}}, {"throughput": {"enabled": True}}])
def test_the_timer_that_waits_for_the_gpu_runs_if_it_is_enabled(tmp_path, given):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"timers": given}))
    enabled = deepspeed.load(path, 1)["timers"]["throughput"]["enabled"]
    assert enabled == ("enabled" in given.get("throughput", {}))


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
        ({"zero_optimization": {"stage": True}}, "stage is True, expected 0 to 3"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "offload_optimizer.device is 'gpu', expected one of none, cpu, nvme",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}},
            "offload_param needs stage 3, not 1",
        ),
        ({"gradient_clipping": "auto"}, "gradient_clipping is 'auto', expected a number"),
        ({"gradient_clipping": -1}, "gradient_clipping is -1, expected a number"),
        (
            {"torch_autocast": {"enabled": True, "dtype": "float16"}},
            "torch_autocast.dtype is 'float16', expected 'bfloat16'",
        ),
        ({"activation_checkpointing": {}}, "use run.activation_checkpointing"),
        ({"managed_gradient_accumulation": False}, "an optimizer step has all slots of"),
        ({"compile": {}}, "use run.compile"),
    ],
)
def test_bad_engine_configurations_are_named(tmp_path, changes, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changes))
    with pytest.raises(MsdeError) as error:
        deepspeed.load(path, 2)
    assert message in str(error.value) and str(path) in str(error.value)


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


@pytest.mark.parametrize("repeated", ["cuda_graphs", "compile"])
@pytest.mark.parametrize(("stage", "fits"), [("zero2", True), ("zero3", False)])
def test_steps_that_repeat_exclude_zero_3(stage, fits, repeated):
    config = make_config("paper", overrides=[f"run.{repeated}=true"])
    values = deepspeed.load(deepspeed.shipped_config(stage), 1)
    with contextlib.nullcontext() if fits else pytest.raises(MsdeError, match="ZeRO 0 to 2 only"):
        deepspeed.check_together(config, values)


def test_what_hugging_face_leaves_open_is_left_to_deepspeed(tmp_path):
    path = tmp_path / "zero.json"
    zero = {"stage": 2, "reduce_bucket_size": "auto"}
    path.write_text(json.dumps({"zero_optimization": zero, "torch_autocast": {"enabled": True}}))
    values = deepspeed.load(path, 1)
    assert values["zero_optimization"] == {"stage": 2}
    assert state_memory(1000, 1, values).device > 0
    assert values["torch_autocast"]["lower_precision_safe_modules"] == []


def test_a_resumed_run_says_why_ranks_cannot_share_its_slots():
    with pytest.raises(MsdeError, match="3 slots, which 2 ranks .*the run was started with them"):
        deepspeed.load(deepspeed.shipped_config("zero1"), 2, resumed_slots=3)
