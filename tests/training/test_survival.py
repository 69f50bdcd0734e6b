"""Runs that are killed, stopped and damaged go on as if nothing had happened."""

import json
import logging
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from fixtures.jobs import (
    TINY,
    Job,
    deepspeed,
    events,
    finish,
    losses,
    manifest,
    members,
    ranks_of,
    read_rows,
    saved_steps,
    send,
    steps,
    wait_for,
)
from fixtures.launching import ds_config
from msde.checkpoints import snapshots
from msde.errors import DiskFull

pytestmark = [pytest.mark.launcher, pytest.mark.dist]

LENGTH = 30
SLOW = {"what": "slow", "step": 0, "seconds": 0.25}


def same(output, whole, last):
    """Check that a run's rows up to a step are those of the undisturbed run, to the bit."""
    found = read_rows(output)
    assert [row["step"] for row in found] == list(range(1, last + 1))
    assert found == whole[:last]


def tensorboard_steps(output):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss/total")]


@pytest.fixture(scope="module")
def common(shard_dir, tmp_path_factory):
    """The arguments of a run on two ranks under ZeRO-1, with accumulation and loader threads."""
    path = ds_config(tmp_path_factory.mktemp("config"), 1, slots=4)
    return ["--data", shard_dir, "--deepspeed_config", path, *TINY, "data.workers=2"]


@pytest.fixture(scope="module")
def whole(common, tmp_path_factory):
    """The rows of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *common, "--output", folder / "run", f"run.steps={LENGTH}")
    rows = read_rows(folder / "run")
    assert len(rows) == LENGTH and len({row["loss/total"] for row in rows}) == LENGTH
    return rows


@pytest.mark.parametrize(
    ("what", "rank", "step"),
    [
        ("die", 1, 5),
        pytest.param("die_in_save", 1, 6, marks=pytest.mark.slow),
        pytest.param("die", 0, 8, marks=pytest.mark.slow),
        pytest.param("die_in_save", 0, 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(
    common, whole, tmp_path, what, rank, step
):
    output = tmp_path / "run"
    arguments = [*common, "--output", output, "run.save_every=3"]
    harm = {"what": what, "rank": rank, "step": step}
    job = Job(tmp_path, *arguments, "run.steps=9", harm=harm)
    codes = job.wait()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 4, codes
    told = job.log(1 - rank)
    assert f"silent: rank {rank}" in told and "Traceback" not in told
    before = [3] if step > 3 else []
    assert saved_steps(output) == [*before, *([6] if step > 6 else [])]
    finish(tmp_path, *arguments, "run.steps=9", "--resume", "required" if before else "auto")
    same(output, whole, 9)
    assert not [*output.rglob("*.tmp"), *(output / "checkpoints").glob(".*")]
    assert tensorboard_steps(output) == list(range(1, 10))


def by_launcher(output):
    (launcher,) = [p for p in members(output) if "deepspeed.launcher.launch" in p.cmdline()]
    send(launcher, signal.SIGTERM)


def by_runner(output):
    (runner,) = [p for p in members(output) if "--num_accelerators=2" in p.cmdline()]
    send(runner, signal.SIGTERM)


def by_one_rank(output):
    send(ranks_of(output)[1], signal.SIGTERM)


def by_usr2(output):
    send(ranks_of(output)[0], signal.SIGUSR2)


def by_file(output):
    (output / "STOP").write_text("")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ask", "launched"),
    [
        (by_one_rank, False),
        (by_launcher, True),
        (by_runner, True),
        (by_usr2, False),
        (by_file, False),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_on_all_ranks(common, whole, tmp_path, ask, launched):
    output = tmp_path / "run"
    arguments = [*common, "--output", output]
    launcher = deepspeed() if launched else None
    job = Job(tmp_path, *arguments, "run.steps=1000", harm=SLOW, launcher=launcher)
    wait_for(lambda: (output / "metrics.jsonl").exists() and len(losses(output)) > 2)
    ask(output)
    # Not what the launchers take to notice: the ranks.
    took = wait_for(lambda: not ranks_of(output), timeout=30)
    codes = job.wait()
    if not launched:
        assert codes == [0, 0]
    last = steps(output)[-1]
    assert saved_steps(output) == [last] and took < 30
    marker = json.loads((output / "PREEMPTED").read_text())
    assert marker["step"] == last and not (output / "STOP").exists()
    assert not (output / "DONE").exists()
    same(output, whole, last)
    end = min(last + 3, LENGTH)
    finish(tmp_path, *arguments, f"run.steps={end}", "--resume", "required")
    same(output, whole, end)
    assert (output / "DONE").exists() and not (output / "PREEMPTED").exists()


@pytest.mark.slow
def test_a_stop_during_validation_leaves_it_for_later(shard_dir, tmp_path):
    """Also checks that every validation is there once, whatever happens."""
    output, undisturbed = tmp_path / "run", tmp_path / "whole"
    arguments = ["--data", shard_dir, *TINY, "data.validation_fraction=0.2"]
    arguments += ["run.validate_every=2", "run.steps=4"]
    finish(tmp_path, *arguments, "--output", undisturbed, ranks=1)
    harm = {"what": "terminate", "step": 2}
    finish(tmp_path, *arguments, "--output", output, ranks=1, harm=harm)
    assert manifest(output, 2)["validation_due"] and (output / "PREEMPTED").exists()
    finish(tmp_path, *arguments, "--output", output, ranks=1)
    assert read_rows(output) == read_rows(undisturbed)


@pytest.fixture(scope="module")
def checkpoints(shard_dir, tmp_path_factory):
    """A run of one rank with three checkpoints, of as many files as there can be."""
    folder = tmp_path_factory.mktemp("checkpoints")
    path = ds_config(folder, 2, slots=1)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "run.ema_decay=0.9"]
    output = folder / "run"
    finish(folder, *arguments, "--output", output, "run.steps=3", "run.save_every=1", ranks=1)
    return arguments, output


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def unlink(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, truncate, unlink, empty])
def test_every_damaged_file_is_noticed_and_named(checkpoints, tmp_path, caplog, harm):
    names = [path.name for path in (checkpoints[1] / "checkpoints/step-000000003").iterdir()]
    assert {"MANIFEST.json", "config.json", "model.safetensors", "ema.safetensors"} < set(names)
    assert any("optim_states" in n for n in names) and any("model_states" in n for n in names)
    for name in names:
        root = tmp_path / name
        shutil.copytree(checkpoints[1] / "checkpoints", root)
        harm(root / "step-000000003" / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            folder, found = snapshots.newest_valid(root)
        assert folder.name == "step-000000002" and found["step"] == 2
        (warning,) = caplog.messages
        assert name in warning and "step-000000003" in warning
        assert saved_steps(tmp_path / "none") == [] and not (root / "step-000000003").exists()


def test_every_bit_of_a_manifest_counts(checkpoints, tmp_path):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints[1] / "checkpoints", root)
    shutil.rmtree(root / "step-000000001")
    shutil.rmtree(root / "step-000000002")
    path = root / "step-000000003/MANIFEST.json"
    whole = path.read_bytes()
    expected = snapshots.newest_valid(root)[1]
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = snapshots.newest_valid(root)
        assert found is None or found[1] == expected, place


@pytest.mark.slow
def test_runs_go_on_from_the_newest_undamaged_checkpoint_or_not_at_all(checkpoints, tmp_path):
    arguments, made = checkpoints
    output = tmp_path / "run"
    shutil.copytree(made, output)
    root = output / "checkpoints"
    arguments = [*arguments, "--output", output, "run.save_every=1", "run.keep_last=2"]
    flip(root / "step-000000003/model.safetensors")
    shutil.copytree(root / "step-000000002", root / ".step-000000004.tmp")
    (root / ".step-000000004.tmp/MANIFEST.json").unlink()
    shutil.copytree(root / ".step-000000004.tmp", root / "step-000000009")
    told = finish(tmp_path, *arguments, "run.steps=4", "--resume", "required", ranks=1)
    assert "step-000000003: model.safetensors is damaged" in told
    assert "step-000000009: MANIFEST.json cannot be read" in told
    assert "resuming from" in told and steps(output) == [1, 2, 3, 4]
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
def test_the_last_checkpoints_and_every_few_are_kept(common, tmp_path):
    output = tmp_path / "run"
    keeping = ["run.save_every=1", "run.keep_last=2", "run.keep_every=4", "run.steps=10"]
    finish(tmp_path, *common, "--output", output, *keeping)
    assert saved_steps(output) == [4, 8, 9, 10]


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_text(str(state))])
def test_a_rank_whose_folder_another_has_removed_tells_of_the_full_disk(tmp_path, write):
    temporary = tmp_path / ".step-000000004.tmp"
    told = pytest.raises(DiskFull, match="disk full: .*step-000000004 needs 9 bytes")
    with told, snapshots.undo_if_disk_full(tmp_path / "step-000000004", temporary, 9):
        write({}, temporary / "state.pt")


@pytest.mark.slow
@pytest.mark.parametrize("filled", [False, True])
def test_a_full_disk_leaves_the_checkpoints_before(shard_dir, small_disk, tmp_path, filled):
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
    told = job.log(0) + job.log(1)
    assert "disk full" in told and f"{output}/checkpoints/step-000000004" in told
    assert "bytes" in told and "Traceback" not in told
    assert saved_steps(output) == [2]
    # With room again, it goes on.
    for filler in small_disk.rglob("filler"):
        filler.unlink()
    finish(tmp_path, *arguments, "run.steps=5", "--resume", "required")
    assert steps(output) == [1, 2, 3, 4, 5] and saved_steps(output) == [2, 4, 5]


@pytest.mark.slow
def test_loader_threads_change_nothing(shard_dir, tmp_path):
    found = []
    for workers in (0, 1, 3):
        output = tmp_path / f"run-{workers}"
        arguments = ["--data", shard_dir, *TINY, "--output", output, f"data.workers={workers}"]
        harm = {"what": "record", "step": 0, "file": str(tmp_path / f"slots-{workers}-")}
        finish(tmp_path, *arguments, "run.steps=8", ranks=1, harm=harm)
        found.append((read_rows(output), (tmp_path / f"slots-{workers}-0").read_text()))
    assert len(found[0][0]) == 8 and found[0] == found[1] == found[2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, too small for many checkpoints."""
    import os
    import subprocess

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


# -- another number of ranks ---------------------------------------------------------------------

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
def test_a_run_goes_on_with_another_number_of_ranks(on_ranks, tmp_path, stage, before, after):
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
def test_running_statistics_are_the_same_on_all_ranks_and_numbers_of_them(on_ranks, stage):
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


@pytest.mark.slow
def test_events_of_steps_that_are_made_again_are_told_once(common, tmp_path):
    """A molecule that spoils its step does so in a resumed run, too."""
    output = tmp_path / "run"
    harm = {"what": "nan_position", "rank": 1, "step": 5}
    arguments = [*common, "--output", output, "run.save_every=4"]
    finish(tmp_path, *arguments, "run.steps=6", harm=harm)
    before = events(output), read_rows(output)
    for folder in (output / "checkpoints").glob("step-00000000[56]"):
        shutil.rmtree(folder)
    finish(tmp_path, *arguments, "run.steps=6", harm=harm)
    assert (events(output), read_rows(output)) == before and len(before[0]) == 1
