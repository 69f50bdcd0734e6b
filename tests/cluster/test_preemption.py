"""Requests to stop that reach one process."""

import multiprocessing
import os
import signal
import time

import pytest
import torch.distributed as dist

from fixtures.jobs import wait_for
from msde.cluster.preemption import SIGNALS, StopRequest


@pytest.fixture
def request_to_stop(tmp_path):
    """What a rank has; the signals' own handlers come back after it."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    stop = StopRequest(tmp_path)
    stop.listen()
    yield stop
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGINT])
def test_a_signal_asks_to_stop(request_to_stop, number):
    assert not request_to_stop.asked
    os.kill(os.getpid(), number)
    assert request_to_stop.asked


def wait_in_cpp(folder):
    """Do what a rank does that waits for another, as long as no handler of Python runs."""
    StopRequest(folder).listen()
    (folder / "ready").touch()
    dist.HashStore().get("never")


def test_the_second_ctrl_c_ends_the_process_at_once(tmp_path):
    rank = multiprocessing.get_context("fork").Process(target=wait_in_cpp, args=[tmp_path])
    rank.start()
    try:
        wait_for((tmp_path / "ready").exists, 20)
        os.kill(rank.pid, signal.SIGINT)
        time.sleep(0.3)
        assert rank.is_alive()
        os.kill(rank.pid, signal.SIGINT)
        rank.join(20)
        assert rank.exitcode == 128 + signal.SIGINT
    finally:
        rank.kill()
        rank.join()
