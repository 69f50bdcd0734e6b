"""Pretraining over two nodes: network namespaces of this machine, joined by a cable."""

import contextlib
import time

import pytest

from fixtures.jobs import (
    SLOW,
    TINY,
    finish,
    kill_members,
    losses,
    members,
    ranks_of,
    steps,
    wait_for,
)
from fixtures.launching import ds_config
from fixtures.nodes import NoNodes, sh, start_on, two_nodes

pytestmark = [pytest.mark.launcher, pytest.mark.dist, pytest.mark.slow]

TIMEOUT = 15


@pytest.fixture
def nodes():
    try:
        with two_nodes() as names:
            yield names
    except NoNodes as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def cluster(nodes, folder, *arguments):
    """Start a run on both nodes and leave nothing behind."""
    jobs = start_on(nodes, folder, *arguments, harm=SLOW)
    try:
        yield jobs
    finally:
        kill_members(folder / "run")
        for job in jobs:
            job.kill()


def logs_of(jobs):
    return "".join(job.log("launcher")[-2000:] for job in jobs)


@pytest.fixture
def arguments(shard_dir, tmp_path):
    path = ds_config(tmp_path, 1, slots=2)
    common = ["--data", shard_dir, "--deepspeed_config", path, *TINY]
    return [*common, f"run.comm_timeout={TIMEOUT}", "--output", tmp_path / "run"]


def trained(output, rows=3):
    return lambda: (output / "metrics.jsonl").exists() and len(losses(output)) >= rows


def test_two_nodes_train_and_a_slow_link_changes_nothing(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    alone = [tmp_path / "alone" if item == output else item for item in arguments]
    finish(tmp_path, *alone, "run.steps=6")
    slowed = [
        sh(f"ip netns exec {nodes[1]} tc qdisc add dev {nodes[1]} root {how}", check=False)
        for how in ("netem delay 20ms", "tbf rate 20mbit burst 64kbit latency 400ms")
    ]  # not every kernel has both, and one of them is enough
    with cluster(nodes, tmp_path, *arguments, "run.steps=6") as jobs:
        codes = [job.wait(240) for job in jobs]
        assert codes == [[0], [0]], logs_of(jobs)
    assert (output / "DONE").exists() and steps(output) == [1, 2, 3, 4, 5, 6]
    assert losses(output) == losses(tmp_path / "alone")
    if all(how.returncode for how in slowed):
        pytest.skip(f"trained, but the link could not be slowed: {slowed[0].stderr.strip()}")


def test_the_death_of_a_node_is_detected_by_the_other(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    with cluster(nodes, tmp_path, *arguments, "run.steps=1000") as jobs:
        wait_for(trained(output))
        since = time.monotonic()
        there = [p for p in members(output) if p.environ()["GLOO_SOCKET_IFNAME"] == nodes[1]]
        there.sort(key=lambda process: "RANK" not in process.environ())  # the rank first
        assert len(there) == 3
        for process in there:
            process.kill()
        codes, took = jobs[0].wait(TIMEOUT + 30), time.monotonic() - since
    assert codes == [4] and took < TIMEOUT, (codes, took, logs_of(jobs))
    assert "silent: rank 1" in jobs[0].log("launcher")


def test_a_cut_link_is_detected_on_both_sides(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    with cluster(nodes, tmp_path, *arguments, "run.steps=1000") as jobs:
        wait_for(trained(output))
        first, second = ranks_of(output)
        since = time.monotonic()
        sh(f"ip -n {nodes[1]} link set {nodes[1]} down")
        wait_for(lambda: not first.is_running() or first.status() == "zombie", TIMEOUT + 5)
        wait_for(
            lambda: not second.is_running() or second.status() == "zombie",
            TIMEOUT + 5 - (time.monotonic() - since),
        )
        codes = [job.wait(30) for job in jobs]
    assert codes == [[4], [4]], logs_of(jobs)
    assert "silent: rank 1" in jobs[0].log("launcher")
    assert "silent: rank 0" in jobs[1].log("launcher")
