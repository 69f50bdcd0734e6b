"""Ranks that wait for others which never come: they can be stopped, and give up with a reason."""

import multiprocessing
import os
import signal
import socket

import pytest

from fixtures.jobs import TINY, wait_for
from fixtures.launching import free_port
from msde import cli
from msde.cluster import watchdog
from msde.config import deepspeed, make_config
from msde.training import loop
from msde.training.engine import start_process_group

WAIT = 20.0  # seconds for what takes a fraction of one on a machine that does nothing else


class Gone:
    """A launcher that has been killed."""

    gone = True


@pytest.fixture
def one_of_two(monkeypatch):
    """The environment of the first rank of two, of which the other is never started."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": free_port()}).items():
        monkeypatch.setenv(name, value)


def is_waiting():
    """Whether the first rank takes the calls of others."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(os.environ["MASTER_PORT"]))) == 0


@pytest.fixture
def start(one_of_two, shard_dir, tmp_path):
    """Give a function that starts a rank; it waits for the other when the function returns."""
    config = make_config(overrides=TINY[1:])
    ds_config = deepspeed.load(deepspeed.shipped_config("cpu_debug"), 2, None)
    started = []

    def pretrain(launcher):
        cli.report_errors(
            lambda: loop.pretrain(
                config, [shard_dir], tmp_path / "run", ds_config, launcher=launcher
            )
        )

    def begin(launcher=None):
        rank = multiprocessing.get_context("fork").Process(target=pretrain, args=[launcher])
        rank.start()
        started.append(rank)
        wait_for(is_waiting, WAIT)
        return rank

    yield begin
    for rank in started:
        rank.kill()
        rank.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_the_others_ends_by_the_first_signal(start, number):
    rank = start()
    assert rank.is_alive()
    os.kill(rank.pid, number)
    rank.join(WAIT)
    assert rank.exitcode == -number


def test_a_rank_that_waits_for_the_others_does_not_outlive_its_launcher(start, monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE", 0.0)
    rank = start(Gone())
    rank.join(WAIT)
    assert rank.exitcode == 4


def test_ranks_that_never_join_are_counted(one_of_two):
    with pytest.raises(watchdog.CommunicationFailed, match=r"found 1 of 2 ranks at 127\.0\.0\.1:"):
        start_process_group(1)
