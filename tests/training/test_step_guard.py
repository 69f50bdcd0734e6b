"""Steps that are not finite, losses that spike, and memory that runs out."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fixtures.jobs import TINY, Job, events, finish, losses, manifest, saved_steps, steps
from fixtures.launching import ds_config
from msde.data.shards import ShardDataset

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


def tensors(value, name=""):
    """All tensors of nested containers, by their place."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    found = {}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= tensors(item, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            found |= tensors(item, f"{name}/{number}")
    return found


def state(output, step):
    """Everything in a checkpoint: weights, their average, buffers, the optimizer's state."""
    folder = output / f"checkpoints/step-{step:09d}"
    found = {}
    for path in sorted(folder.glob("*.pt")):
        found |= tensors(torch.load(path, weights_only=False), path.name)
    found |= tensors(load_file(folder / "ema.safetensors"), "ema")
    assert any("exp_avg" in n for n in found) and any("running_var" in n for n in found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nan_position", "infinite_gradient"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_changes_no_state(shard_dir, tmp_path, stage, what):
    """One rank's slot, of two that it accumulates, makes all ranks skip the step."""
    output = tmp_path / "run"
    path = ds_config(tmp_path, stage, slots=4, threshold=2000)
    if what == "infinite_gradient":  # clipping must not hide it
        values = json.loads(path.read_text()) | {"gradient_clipping": 1.0}
        path.write_text(json.dumps(values))
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", output]
    arguments += ["run.save_every=1", "run.keep_last=9", "optim.weight_decay=1e-2"]
    arguments.append("run.ema_decay=0.9")
    harm = {"what": what, "rank": 1, "step": 3}
    uninitialised = {"MALLOC_PERTURB_": "128"}  # memory that holds 3e38
    finish(tmp_path, *arguments, "run.steps=4", harm=harm, environment=uninitialised)
    before, skipped, after = (state(output, step) for step in (2, 3, 4))
    assert before.keys() == skipped.keys()
    changed = [name for name in before if not torch.equal(before[name], skipped[name])]
    assert not changed
    assert sum(not torch.equal(after[name], before[name]) for name in before) > 50
    assert all(tensor.isfinite().all() for tensor in after.values())
    (event,) = events(output)
    assert event["step"] == 3 and event["event"] == "step skipped"
    dataset = ShardDataset(shard_dir)
    rows = [dataset.index(block)["uid"] for block in range(dataset.num_blocks)]
    known = {f"{uid:016x}" for uid in np.concatenate(rows).tolist()}
    if what == "nan_position":
        (slot,) = event["slots"]
        assert slot["slot"] == 4 * 2 + 2 and slot["epoch"] == 0 and len(slot["molecules"]) == 1
        assert event["reason"] == "losses are not finite"
    else:
        assert event["reason"] == "gradients are not finite"
        assert [slot["slot"] for slot in event["slots"]] == [8, 9, 10, 11]
    assert all(set(slot["molecules"]) <= known for slot in event["slots"])
    assert manifest(output, 4)["skipped_in_a_row"] == 0


@pytest.mark.slow
def test_a_run_ends_after_too_many_skipped_steps_even_across_a_resume(shard_dir, tmp_path):
    output = tmp_path / "run"
    path = ds_config(tmp_path, 1, slots=2)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", output]
    arguments += ["run.save_every=4", "run.max_skipped_steps=4", "run.steps=20"]
    harm = {"what": "nan_positions", "rank": 0, "step": 3, "steps": 9}
    for start in ("fresh", "resumed"):
        job = Job(tmp_path, *arguments, harm=harm)
        assert job.wait() == [5, 5], start
        printed = job.log(0)
        assert "4 steps in a row were skipped" in printed and "losses are not finite" in printed
        assert "Traceback" not in printed + job.log(1)
        assert [event["step"] for event in events(output)] == [3, 4, 5, 6]
        assert saved_steps(output) == [4] and manifest(output, 4)["skipped_in_a_row"] == 2


@pytest.mark.slow
def test_a_spike_of_the_loss_is_skipped_by_all_ranks_and_again_on_resuming(shard_dir, tmp_path):
    path = ds_config(tmp_path, 1, slots=2)
    common = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "run.steps=56"]
    common += ["run.save_every=52", "run.spike_factor=10"]
    harm = {"what": "leap", "rank": 1, "step": 54, "factor": 100}
    whole, output = tmp_path / "whole", tmp_path / "run"
    finish(tmp_path, *common, "--output", whole, harm=harm)
    (event,) = events(whole)
    assert event["step"] == 54 and "times its mean" in event["reason"]
    assert len(event["slots"]) == 1 and event["slots"][0]["slot"] % 2 == 1
    assert losses(whole)[53] > 10 * losses(whole)[54]
    job = Job(tmp_path, *common, "--output", output, harm={"what": "die", "rank": 1, "step": 53})
    assert job.wait() == [4, -signal.SIGKILL]
    finish(tmp_path, *common, "--output", output, "--resume", "required", harm=harm)
    assert events(output) == events(whole) and losses(output) == losses(whole)
    assert steps(output) == list(range(1, 57))
    assert manifest(output, 56)["mean_loss"] == manifest(whole, 56)["mean_loss"]
    # Losses of another objective are no spikes of the former ones.
    more = ["run.steps=60", "loss.coefficient_2d_to_3d=1000"]
    finish(tmp_path, *common, *more, "--output", output)
    assert events(output) == events(whole) and steps(output) == list(range(1, 61))


@pytest.mark.slow
def test_out_of_memory_errors_name_the_slot_and_the_setting(shard_dir, tmp_path):
    output = tmp_path / "run"
    path = ds_config(tmp_path, 0, slots=2)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", output]
    job = Job(tmp_path, *arguments, harm={"what": "out_of_memory", "rank": 1, "step": 2})
    codes = job.wait()
    assert codes[1] == 2 and codes[0] == 4, codes
    (line,) = [line for line in job.log(1).splitlines() if line.startswith("error")]
    for part in ("out of memory in slot 3", " molecules, ", "atoms", "data.molecules_per_slot"):
        assert part in line
    assert "Traceback" not in job.log(1)
