"""Requests to stop that reach one process."""

import os
import signal

import pytest

from msde.cluster.preemption import SIGNALS, StopRequest


@pytest.fixture
def request_to_stop(tmp_path):
    """What a rank has; the signals' own handlers come back after it."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    yield StopRequest(tmp_path)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGINT])
def test_a_signal_asks_to_stop(request_to_stop, number):
    assert not request_to_stop.asked
    os.kill(os.getpid(), number)
    assert request_to_stop.asked


def test_the_second_ctrl_c_ends_the_process_at_once(request_to_stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
