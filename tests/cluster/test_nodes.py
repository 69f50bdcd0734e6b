"""Pretraining over two nodes: network namespaces of this machine, joined by a cable."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from fixtures.jobs import TINY, finish, losses, members, ranks_of, steps, wait_for
from fixtures.launching import BINARIES, ENVIRONMENT, ds_config
from fixtures.paths import HARM, ROOT

pytestmark = [pytest.mark.launcher, pytest.mark.dist, pytest.mark.slow]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT = 15


def sh(command, check=True):
    return subprocess.run(command.split(), check=check, capture_output=True, text=True)


@pytest.fixture
def nodes():
    """Two nodes; gives their names, each of which has an interface of the same name."""
    if shutil.which("ip") is None:
        pytest.skip("two nodes need `ip`, of Debian's iproute2")
    if os.geteuid():
        pytest.skip("two nodes need root")
    names = tuple(f"msde{os.getpid() % 10_000}{letter}" for letter in "ab")
    made = sh(f"ip netns add {names[0]}", check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made: {made.stderr.strip()}")
    try:
        sh(f"ip netns add {names[1]}")
        sh(f"ip link add {names[0]} type veth peer name {names[1]}")
        for name, address in zip(names, ADDRESSES, strict=True):
            sh(f"ip link set {name} netns {name}")
            for setting in (f"addr add {address}/24 dev {name}", f"link set {name} up"):
                sh(f"ip -n {name} {setting}")
            sh(f"ip -n {name} link set lo up")
        yield names
    finally:
        for name in names:
            sh(f"ip netns del {name}", check=False)


class Cluster:
    """A run of one rank on each node, under a launcher of its own."""

    def __init__(self, nodes, folder, *arguments):
        hosts = folder / "hostfile"
        hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        self.launchers = []
        for number, node in enumerate(nodes):
            command = ["ip", "netns", "exec", node, BINARIES / "deepspeed", "--no_ssh"]
            command += ["--num_nodes=2", f"--node_rank={number}", f"--hostfile={hosts}"]
            command += [f"--master_addr={ADDRESSES[0]}", "--master_port=29777", HARM, *arguments]
            environment = ENVIRONMENT | {
                "GLOO_SOCKET_IFNAME": node,
                "TP_SOCKET_IFNAME": node,
                "HARM": '{"what": "slow", "step": 0, "seconds": 0.2}',
            }
            log = open(folder / f"node-{number}.log", "w")
            self.launchers.append(
                subprocess.Popen(
                    list(map(str, command)),
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )
            )
        self.folder = folder

    def log(self, node):
        return (self.folder / f"node-{node}.log").read_text()


@contextlib.contextmanager
def cluster(nodes, folder, *arguments):
    """Start one and leave nothing behind."""
    started = Cluster(nodes, folder, *arguments)
    try:
        yield started
    finally:
        for process in members(folder):
            with contextlib.suppress(Exception):
                process.kill()
        for launcher in started.launchers:
            launcher.kill()
            launcher.wait()


@pytest.fixture
def arguments(shard_dir, tmp_path):
    path = ds_config(tmp_path, 1, slots=2)
    common = ["--data", shard_dir, "--deepspeed_config", path, *TINY]
    return [*common, f"run.comm_timeout={TIMEOUT}", "--output", tmp_path / "run"]


def trained(output, rows=3):
    return lambda: (output / "metrics.jsonl").exists() and len(losses(output)) >= rows


def exit_of(launcher, since, limit):
    code = launcher.wait(limit + 30)
    return code, time.monotonic() - since


def test_two_nodes_train_and_a_slow_link_changes_nothing(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    alone = [tmp_path / "alone" if item == output else item for item in arguments]
    finish(tmp_path, *alone, "run.steps=6")
    slowed = [
        sh(f"ip netns exec {nodes[1]} tc qdisc add dev {nodes[1]} root {how}", check=False)
        for how in ("netem delay 20ms", "tbf rate 20mbit burst 64kbit latency 400ms")
    ]  # not every kernel has both, and one of them is enough
    with cluster(nodes, tmp_path, *arguments, "run.steps=6") as job:
        codes = [launcher.wait(240) for launcher in job.launchers]
        assert codes == [0, 0], job.log(0) + job.log(1)
    assert (output / "DONE").exists() and steps(output) == [1, 2, 3, 4, 5, 6]
    assert losses(output) == losses(tmp_path / "alone")
    if all(how.returncode for how in slowed):
        pytest.skip(f"trained, but the link could not be slowed: {slowed[0].stderr.strip()}")


def test_the_death_of_a_node_is_detected_by_the_other(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    with cluster(nodes, tmp_path, *arguments, "run.steps=1000") as job:
        wait_for(trained(output))
        since = time.monotonic()
        there = [p for p in members(output) if p.environ()["GLOO_SOCKET_IFNAME"] == nodes[1]]
        there.sort(key=lambda process: "RANK" not in process.environ())  # the rank first
        assert len(there) == 3
        for process in there:
            process.kill()
        code, took = exit_of(job.launchers[0], since, TIMEOUT)
    assert code == 4 and took < TIMEOUT, (code, took, job.log(0)[-2000:])
    assert "silent: rank 1" in job.log(0)


def test_a_cut_link_is_detected_on_both_sides(nodes, arguments, tmp_path):
    output = tmp_path / "run"
    with cluster(nodes, tmp_path, *arguments, "run.steps=1000") as job:
        wait_for(trained(output))
        first, second = ranks_of(output)
        since = time.monotonic()
        sh(f"ip -n {nodes[1]} link set {nodes[1]} down")
        wait_for(lambda: not first.is_running() or first.status() == "zombie", TIMEOUT + 5)
        wait_for(
            lambda: not second.is_running() or second.status() == "zombie",
            TIMEOUT + 5 - (time.monotonic() - since),
        )
        codes = [launcher.wait(30) for launcher in job.launchers]
    assert codes == [4, 4], job.log(0)[-2000:] + job.log(1)[-2000:]
    assert "silent: rank 1" in job.log(0) and "silent: rank 0" in job.log(1)
