"""What ranks have of each other, beside a run: two processes and their watchdogs."""

import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist

from fixtures.launching import free_port
from msde import cli
from msde.cluster.preemption import StopRequest
from msde.cluster.watchdog import Watchdog, limit_waiting

TIMEOUT = 0.5  # seconds


class Launcher:
    """One that is killed later."""

    gone = False


def wait(rank, folder):
    """Wait for the first rank as while it saves; the second one's launcher is killed then."""
    launcher = Launcher()
    watchdog = Watchdog(TIMEOUT, StopRequest(folder), launcher)
    with watchdog.explaining_failures():
        dist.init_process_group("gloo")
        limit_waiting(TIMEOUT)
        watchdog.joined()
        with watchdog.patient():
            time.sleep(4 * TIMEOUT * (rank == 0))
            dist.barrier()
        launcher.gone = rank == 1
        (folder / str(rank)).write_text(str(watchdog.any_orphaned(torch.device("cpu"))))


def start(rank, port, folder):
    names = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= names | {"MASTER_PORT": port}
    cli.report_errors(lambda: wait(rank, folder))


@pytest.mark.launcher
def test_ranks_wait_for_one_that_saves_and_learn_of_every_launcher(tmp_path):
    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = [context.Process(target=start, args=[rank, port, tmp_path]) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]
