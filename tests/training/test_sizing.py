"""The memory, steps and DeepSpeed configuration that launch/plan.py calculates for a run."""

import json
import re

import pytest

from fixtures.commands import run_here
from fixtures.seeds import mostly_slow
from msde.config import deepspeed, make_config
from msde.ops import dispatch
from msde.training import sizing

SMALL = ["model.hidden_dim=64", "model.schnet.num_filters=64", "data.validation_fraction=0"]


@pytest.mark.parametrize("again", mostly_slow(["false", "true"], ["true"]))
def test_activations_of_a_larger_slot_follow_from_two_small_ones(shard_dir, again, monkeypatch):
    overrides = [*SMALL, f"run.activation_checkpointing={again}"]
    config = make_config("base", overrides=overrides)
    needs = sizing.measure(config, sizing.sample(config, [str(shard_dir)])[0])
    monkeypatch.setattr(sizing, "SAMPLE", (50, 75))
    larger = sizing.sample(config, [str(shard_dir)])[0]
    found = sizing.measure(config, larger).activations(75)
    assert needs.activations(75) == pytest.approx(found, rel=0.1)


def test_on_a_gpu_activations_take_more_than_on_a_cpu():
    """There Fourier features and activations are plain torch's, which keeps what is between."""
    config = make_config("base", overrides=SMALL)
    batches = sizing.sample(config, [])[0]
    on_cpu = sizing.measure(config, batches)
    with dispatch.cpu_as_gpu():
        on_gpu = sizing.measure(config, batches)
    assert dispatch.BACKENDS["cpu"] == "cpp"
    assert on_gpu.per_molecule > 1.1 * on_cpu.per_molecule
    assert on_gpu.flops_per_molecule == on_cpu.flops_per_molecule


def test_activation_checkpointing_needs_less():
    needs = [
        sizing.measure(config, sizing.sample(config, [])[0]).activations(64)
        for config in (
            make_config("base", overrides=[*SMALL, f"run.activation_checkpointing={again}"])
            for again in ("true", "false")
        )
    ]
    assert needs[0] < 0.7 * needs[1]


def plan(*arguments):
    return run_here("msde.launch.plan", "--preset=base", *arguments, *SMALL)


def test_a_plan_has_memory_steps_and_a_configuration(shard_dir, tmp_path):
    chosen = tmp_path / "chosen.json"
    done = plan("--gpu=A100", "--gpus=4", f"--data={shard_dir}", f"--output={chosen}")
    assert done.returncode == 0, done.stderr
    for part in ("64 molecules of", "an epoch: 150 molecules", "zero3_offload: ", "TF32", "fits"):
        assert part in done.stdout
    assert re.search(r"time of the run of \d+ steps: .* at 10%", done.stdout)
    assert "zero1.json" in done.stdout
    assert json.loads(chosen.read_text()) == sizing.read("zero1")


def test_settings_may_stand_between_options_and_zero_3_is_not_named_for_compiled_steps(shard_dir):
    done = plan("run.compile=true", "--gpu=A100", f"--data={shard_dir}", "run.steps=1000")
    assert done.returncode == 0, done.stderr
    assert "time of the run of 1,000 steps" in done.stdout
    assert "zero2: " in done.stdout and "zero3" not in done.stdout


def test_larger_stages_are_chosen_where_smaller_ones_do_not_fit(monkeypatch):
    config = make_config("base", overrides=SMALL)
    needs = sizing.Needs(10**9, fixed=0, per_molecule=1e6, flops_per_molecule=1e9)
    found = {peak.name: peak.device for peak in sizing.peaks(needs, 64, num_gpus=8)}
    # Here the weights that zero3 gathers take more than what it saves.
    assert found["zero1"] > found["zero3"] > found["zero2"] > found["zero3_offload"]
    monkeypatch.setattr(sizing, "measure", lambda *_: needs)
    for below, name in (("zero1", "zero2"), ("zero2", "zero3_offload")):
        monkeypatch.setitem(sizing.GPU_MEMORY, "A100", found[below] / (1 - sizing.RESERVED) - 1)
        assert sizing.report(config, "A100", 8, [])[1] == name
    assert deepspeed.shipped_config("zero3_offload").exists()


def test_recorded_steps_need_memory_of_their_own():
    needs = sizing.Needs(10**6, fixed=1e6, per_molecule=1e6, flops_per_molecule=1e9)
    plain, recorded = (sizing.peaks(needs, 64, 8, recorded=each)[0] for each in (False, True))
    assert recorded.device - plain.device == 65e6 + 4e6
    config = make_config("base", overrides=[*SMALL, "run.cuda_graphs=true"])
    assert ", twice with run.cuda_graphs" in sizing.report(config, "H200", 1, [])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu=T4"], "found 'T4', expected one of A100-40GB"),
        (["--gpu=A100", "data.molecules_per_slot=2000000"], "nothing fits 72 GB of A100"),
        (["--gpu=A100", "--data=nowhere"], "nowhere"),
        (["--gpus=0"], "--gpus must be at least 1"),
        (["--output=nowhere/ds.json"], "its folder does not exist or is not writable"),
    ],
)
def test_what_cannot_be_planned_is_an_error(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
