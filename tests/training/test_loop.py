"""Runs that are killed or stopped resume to the same losses, to the bit."""

import json
import shutil
import signal

import pytest

from fixtures.jobs import (
    SLOW,
    TINY,
    Job,
    events,
    finish,
    launcher_of,
    losses,
    manifest,
    ranks_of,
    read_rows,
    runner_of,
    saved_steps,
    send,
    steps,
    wait_for,
)
from fixtures.launching import deepspeed

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


LENGTH = 30


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
def whole(common, tmp_path_factory):
    """The rows of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *common, "--output", folder / "run", f"run.steps={LENGTH}")
    rows = read_rows(folder / "run")
    assert len(rows) == LENGTH and len({row["loss/total"] for row in rows}) == LENGTH
    return rows


def test_two_ranks_of_which_one_is_killed_are_continued_by_one(common, tmp_path):
    """A quick one; the slow tests look more closely at each part."""
    output = tmp_path / "run"
    arguments = [*common, "--output", output, "optim.lr=1e-6", "run.save_every=3", "run.steps=6"]
    job = Job(tmp_path, *arguments, harm={"what": "die", "rank": 1, "step": 6})
    assert job.wait() == [4, -signal.SIGKILL] and saved_steps(output) == [3]
    before = losses(output)
    assert len(before) == 5 and len(set(before)) == 5
    finish(tmp_path, *arguments, "--resume", "required", ranks=1)
    assert steps(output) == [1, 2, 3, 4, 5, 6] and losses(output)[:3] == before[:3]
    assert losses(output)[3:5] == pytest.approx(before[3:], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rank", "step"),
    [("die", 1, 5), ("die_in_save", 1, 6), ("die", 0, 8), ("die_in_save", 0, 3)],
)
def test_a_killed_rank_costs_only_the_steps_since_the_last_checkpoint(
    common, whole, tmp_path, what, rank, step
):
    output = tmp_path / "run"
    arguments = [*common, "--output", output, "run.save_every=3"]
    harm = {"what": what, "rank": rank, "step": step}
    job = Job(tmp_path, *arguments, "run.steps=9", harm=harm)
    codes = job.wait()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 4, codes
    printed = job.log(1 - rank)
    assert f"silent: rank {rank}" in printed and "Traceback" not in printed
    before = [3] if step > 3 else []
    assert saved_steps(output) == [*before, *([6] if step > 6 else [])]
    finish(tmp_path, *arguments, "run.steps=9", "--resume", "required" if before else "auto")
    same(output, whole, 9)
    assert not [*output.rglob("*.tmp"), *(output / "checkpoints").glob(".*")]
    assert tensorboard_steps(output) == list(range(1, 10))


def by_launcher(output):
    send(launcher_of(output), signal.SIGTERM)


def by_runner(output):
    send(runner_of(output), signal.SIGTERM)


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
    # The time of the ranks, without the launchers'.
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
def test_a_validation_that_is_stopped_is_repeated_on_resuming(shard_dir, tmp_path):
    """Every validation is in the metrics once."""
    output, undisturbed = tmp_path / "run", tmp_path / "whole"
    arguments = ["--data", shard_dir, *TINY, "data.validation_fraction=0.2"]
    arguments += ["run.validate_every=2", "run.steps=4"]
    finish(tmp_path, *arguments, "--output", undisturbed, ranks=1)
    harm = {"what": "terminate", "step": 2}
    finish(tmp_path, *arguments, "--output", output, ranks=1, harm=harm)
    assert manifest(output, 2)["validation_due"] and (output / "PREEMPTED").exists()
    finish(tmp_path, *arguments, "--output", output, ranks=1)
    assert read_rows(output) == read_rows(undisturbed)


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


@pytest.mark.slow
def test_events_of_repeated_steps_appear_once(common, tmp_path):
    """A molecule that makes ranks skip a step does so in a resumed run, too."""
    output = tmp_path / "run"
    harm = {"what": "nan_position", "rank": 1, "step": 5}
    arguments = [*common, "--output", output, "run.save_every=4"]
    finish(tmp_path, *arguments, "run.steps=6", harm=harm)
    before = events(output), read_rows(output)
    for folder in (output / "checkpoints").glob("step-00000000[56]"):
        shutil.rmtree(folder)
    finish(tmp_path, *arguments, "run.steps=6", harm=harm)
    assert (events(output), read_rows(output)) == before and len(before[0]) == 1
