"""Checkpoints of whole runs: which one is resumed, on how many ranks, and on a full disk."""

import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from fixtures.blocks import flip
from fixtures.jobs import (
    TINY,
    Job,
    finish,
    losses,
    read_rows,
    saved_steps,
    steps,
)
from fixtures.launching import ds_config
from msde.checkpoints import engine_state, snapshots

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


def test_each_partition_has_a_step_count_of_its_own_on_its_device():
    """A device that only has shapes stands for a GPU."""
    weights = [torch.nn.Parameter(torch.zeros(2, device="meta")) for _ in range(2)]
    optimizer = torch.optim.Adam(weights)
    count = torch.tensor(3.0)  # on the CPU, as converted checkpoints have it
    for parameter in weights:
        optimizer.state[parameter] = {"step": count}
    engine_state.place_step_counts(optimizer)
    one, other = (optimizer.state[parameter]["step"] for parameter in weights)
    assert one.is_meta and other.is_meta and one is not other


@pytest.mark.slow
def test_a_run_resumes_from_the_newest_valid_checkpoint_or_not_at_all(checkpoints, tmp_path):
    arguments, made = checkpoints
    output = tmp_path / "run"
    shutil.copytree(made, output)
    root = output / "checkpoints"
    arguments = [*arguments, "--output", output, "run.save_every=1", "run.keep_last=2"]
    flip(root / "step-000000003/model.safetensors")
    shutil.copytree(root / "step-000000002", root / ".step-000000004.tmp")
    (root / ".step-000000004.tmp/MANIFEST.json").unlink()
    shutil.copytree(root / ".step-000000004.tmp", root / "step-000000009")
    printed = finish(tmp_path, *arguments, "run.steps=4", "--resume", "required", ranks=1)
    assert "step-000000003: model.safetensors is damaged" in printed
    assert "step-000000009: MANIFEST.json cannot be read" in printed
    assert "resuming from" in printed and steps(output) == [1, 2, 3, 4]
    # The damaged ones do not count among the two that are kept.
    assert sorted(path.name for path in root.iterdir()) == [
        "damaged-step-000000003",
        "damaged-step-000000009",
        "step-000000003",
        "step-000000004",
        "zero_to_fp32.py",  # DeepSpeed's
        "zero_to_torch.py",
    ]
    for folder in root.glob("step-*"):
        flip(folder / "model.safetensors")
    rows = read_rows(output)
    for resume in ("required", "auto"):
        job = Job(tmp_path, *arguments, "run.steps=5", "--resume", resume, ranks=1)
        assert job.wait() == [3] and "holds" in job.log()
    assert read_rows(output) == rows and saved_steps(output) == [3, 4]


@pytest.mark.slow
def test_the_newest_checkpoints_and_every_mth_are_kept(common, tmp_path):
    output = tmp_path / "run"
    keeping = ["run.save_every=1", "run.keep_last=2", "run.keep_every=4", "run.steps=10"]
    finish(tmp_path, *common, "--output", output, *keeping)
    assert saved_steps(output) == [4, 8, 9, 10]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, too small for many checkpoints."""

    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("filled", [False, True])
def test_a_full_disk_leaves_earlier_checkpoints_intact(shard_dir, small_disk, tmp_path, filled):
    """There is no room from the start, or another program takes it in the meantime."""
    output = small_disk / "run"
    path = ds_config(tmp_path, 1, slots=2)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", output]
    arguments += ["run.save_every=2"]
    finish(tmp_path, *arguments, "run.steps=2")
    if not filled:
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(free - 500_000))
    harm = {"what": "fill_disk", "step": 4} if filled else None
    job = Job(tmp_path, *arguments, "run.steps=5", harm=harm)
    codes = job.wait()
    assert 2 in codes and set(codes) <= {2, 4}, codes
    printed = job.log(0) + job.log(1)
    assert "disk full" in printed and f"{output}/checkpoints/step-000000004" in printed
    assert "bytes" in printed and "Traceback" not in printed
    assert saved_steps(output) == [2]
    # With room again, it goes on.
    for filler in small_disk.rglob("filler"):
        filler.unlink()
    finish(tmp_path, *arguments, "run.steps=5", "--resume", "required")
    assert steps(output) == [1, 2, 3, 4, 5] and saved_steps(output) == [2, 4, 5]


SCALES = ["optim.scale_encoder_2d=0.5", "optim.beta1=0.8", "optim.weight_decay=1e-3"]


@pytest.fixture(scope="module")
def on_ranks(shard_dir, tmp_path_factory):
    """Give undisturbed runs by ZeRO stage and number of ranks, made once."""
    made = {}

    def run(stage, ranks):
        if (stage, ranks) not in made:
            folder = tmp_path_factory.mktemp(f"zero{stage}-{ranks}")
            path = ds_config(folder, stage, slots=4, threshold=2000)
            # Where a gradient is zero but for rounding, Adam makes a whole step of it.
            arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, *SCALES]
            arguments += ["run.steps=24", "run.save_every=4", "run.keep_last=9", "optim.lr=1e-6"]
            harm = {"what": "dump", "rank": "all", "step": 5, "file": str(folder / "state-")}
            finish(folder, *arguments, "--output", folder / "run", ranks=ranks, harm=harm)
            made[stage, ranks] = (arguments, folder)
        return made[stage, ranks]

    return run


def dumped(folder, rank=0):
    return torch.load(folder / f"state-{rank}", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_ranks(on_ranks, tmp_path, stage, before, after):
    arguments, original = on_ranks(stage, before)
    output = tmp_path / "run"
    shutil.copytree(original / "run", output)
    for step in saved_steps(output):
        if step > 4:
            shutil.rmtree(output / "checkpoints" / snapshots.folder_name(step))
    harm = {"what": "dump", "rank": "all", "step": 5, "file": str(tmp_path / "state-")}
    resumed = [*arguments, "--output", output, "--resume", "required"]
    finish(tmp_path, *resumed, ranks=after, harm=harm)
    expected, found = losses(original / "run"), losses(output)
    assert len(found) == 24 and found[4] != found[5]
    assert found == pytest.approx(expected, rel=1e-6)
    # The optimizer's moments are those that were saved, and its groups those of this run.
    was, now = dumped(original), dumped(tmp_path)
    assert was["moments"].keys() == now["moments"].keys() and len(was["moments"]) > 100
    for name, moment in was["moments"].items():
        assert torch.equal(moment, now["moments"][name]), name
    assert any(moment.any() for moment in was["moments"].values())
    assert was["groups"] == now["groups"] and was["counts"] == now["counts"] == [4.0]
    rates = {group["name"]: group["lr"] for group in now["groups"]}
    assert rates == pytest.approx(
        {"encoder_2d": 5e-7, "encoder_3d": 1e-7, "score_2d_to_3d": 1e-6, "score_3d_to_2d": 1e-7}
    )
    assert all(tuple(group["betas"]) == (0.8, 0.999) for group in now["groups"])
    assert all(group["weight_decay"] == 1e-3 for group in now["groups"])
    for name, buffer in was["buffers"].items():
        assert torch.equal(buffer, now["buffers"][name]), name
    assert not [p for p in (output / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_running_statistics_are_the_same_on_all_ranks_and_for_any_number_of_them(on_ranks, stage):
    alone, together = on_ranks(stage, 1)[1], on_ranks(stage, 2)[1]
    first, second, single = dumped(together, 0), dumped(together, 1), dumped(alone)
    names = [name for name in first["buffers"] if "running_" in name]
    assert names
    for name in names:
        assert torch.equal(first["buffers"][name], second["buffers"][name]), name
        assert torch.allclose(
            first["buffers"][name], single["buffers"][name], rtol=1e-5, atol=1e-7
        ), name
    assert losses(together / "run") == pytest.approx(losses(alone / "run"), rel=1e-6)
    states = [
        load_file(folder / "run/checkpoints/step-000000024/model.safetensors")
        for folder in (alone, together)
    ]
    for name in names:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-4, atol=1e-6), name
