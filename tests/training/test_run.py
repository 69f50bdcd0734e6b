"""What a run does around its steps, in this process as the only rank."""

import signal

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import groups

from fixtures.jobs import TINY
from fixtures.launching import ds_config
from msde.cluster.preemption import StopRequest
from msde.cluster.ranks import map_environment
from msde.cluster.watchdog import STARTING, Watchdog
from msde.config import deepspeed, make_config
from msde.data.batch import MoleculeBatch
from msde.errors import DiskFull
from msde.training import loop
from msde.training.engine import start_process_group
from msde.training.memory import OutOfMemory
from msde.training.metrics import Interval
from msde.training.plan import make_plan

TIMEOUT = 300.0


class Launcher:
    """One that lives."""

    gone = False


@pytest.fixture
def build(shard_dir, tmp_path, monkeypatch):
    """Give a function that builds a run with some overrides."""
    for name, value in map_environment({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(groups, "_WORLD_GROUP", None)  # DeepSpeed keeps the one that is gone
    handler = signal.getsignal(signal.SIGINT)
    watching = []

    def make(*overrides):
        start_process_group(TIMEOUT)
        own = ["model.conformer.hidden_dim=16", f"run.comm_timeout={TIMEOUT}", *overrides]
        config = make_config("paper", overrides=[*TINY[1:], *own])
        output, settings = tmp_path / "run", deepspeed.load(ds_config(tmp_path, 1, 1), 1, None)
        plan, stop = make_plan(config, [shard_dir], 1), StopRequest(output)
        watching.append(Watchdog(TIMEOUT, stop, Launcher()))
        return loop.build_run(config, plan, output, settings, "auto", None, stop, watching[0])

    yield make
    watching[0].stop()
    signal.signal(signal.SIGINT, handler)
    if dist.is_initialized():
        dist.destroy_process_group()


def waiting(run):
    """Seconds that the ranks wait for each other, and that the watchdog waits."""
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    return backend.options._timeout.total_seconds(), run.watchdog._limit


def test_a_request_to_stop_in_the_last_step_changes_nothing(build):
    run = build("run.steps=1")
    (run.output / "STOP").touch()
    loop.train(run, 0)
    assert (run.output / "DONE").exists() and (run.output / "checkpoints/step-000000001").exists()
    assert not (run.output / "PREEMPTED").exists() and not (run.output / "STOP").exists()


def test_ranks_wait_longer_where_one_may_copy_or_write_for_long(build, monkeypatch):
    run, found = build("run.steps=1", "data.validation_fraction=0.2", "run.ema_decay=0.9"), {}

    def noting(name, function):
        def noted(*arguments, **options):
            found.setdefault(name, []).append(waiting(run))
            return function(*arguments, **options)

        return noted

    for place in ("save", "replace_weights"):
        function = getattr(loop.engine_state, place)
        monkeypatch.setattr(loop.engine_state, place, noting(place, function))
    monkeypatch.setattr(run.plan.stream, "_prepare", noting("copy", run.plan.stream._prepare))
    monkeypatch.setattr(run, "take_step", noting("step", run.take_step))
    loop.train(run, 0)
    assert found.pop("step") == [(TIMEOUT, TIMEOUT)]
    for place in ("copy", "replace_weights", "save"):
        assert found[place][0] == (STARTING, STARTING), place


def test_the_moving_average_moves_in_steps_that_are_taken(build):
    run = build("run.ema_decay=0.75", "run.steps=1")
    average, (weight, *_) = run.ema._average, run.ema._own_weights()
    before = average[0].clone()
    with torch.no_grad():
        weight.add_(1)
    run.ema.update(torch.tensor(True))
    assert torch.equal(average[0], before)
    run.ema.update(torch.tensor(False))
    assert torch.equal(average[0], torch.lerp(before, weight, 0.25))


def test_no_rank_waits_to_exchange_weights_after_an_error(build):
    """The others do not come: they wait for the files of the one that failed."""
    run = build("run.steps=1", "run.ema_decay=0.5")
    with torch.no_grad():
        run.ema._own_weights()[0].add_(1)
    average = run.ema._average[0].clone()
    with pytest.raises(DiskFull), run.ema.swapped_in():
        raise DiskFull("disk full")
    assert torch.equal(run.ema._own_weights()[0], average)


def test_memory_that_runs_out_anywhere_is_one_line(build, monkeypatch):
    run = build("run.steps=1", "data.validation_fraction=0.2", "data.workers=0")
    steps = iter(run.plan.stream)
    slots = next(steps)

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no memory")

    interval = Interval(run.engine.device, 0, run.config.loss)
    for owner, name, call, said in (
        (MoleculeBatch, "expand", lambda: run.next_slots(steps), "the batches of a step; use"),
        (run.engine, "step", lambda: run.take_step(slots, interval), "Adam's step; .*offload_opt"),
        (MoleculeBatch, "to", run.validate, "held-out slot 0 of .*; use a smaller data.molecules"),
        (MoleculeBatch, "to", run._show_samples, "samples of held-out molecules; use a smaller"),
    ):
        with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match=said):
            patch.setattr(owner, name, full)
            call()
