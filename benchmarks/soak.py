"""Kill ranks, launchers, nodes and links during a training run, and compare with a quiet run.

python benchmarks/soak.py --minutes 30

The `paper` network at hidden 64 trains on two ranks, each on a node of its own where network
namespaces can be made (root and iproute2), and is started again whenever it has ended. --seed
determines which harm comes when. At the end the same steps are repeated without any harm: the
losses have to be the same to the bit. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rdkit import RDConfig

from msde.monitor.writer import read_metrics

ROOT = Path(__file__).parent.parent
BINARIES = Path(sys.executable).parent
ADDRESSES = ("10.78.0.1", "10.78.0.2")
HARMS = ["kill rank 0", "kill rank 1", "stop rank 0", "stop rank 1", "kill launcher"]
HARMS += ["kill runner", "terminate rank", "terminate launcher"]
HARMS_OF_NODES = ["kill node", "cut link"]
RUN = ["--preset=paper", "model.hidden_dim=64", "data.molecules_per_step=48", "data.workers=2"]
RUN += ["data.validation_fraction=0.05", "run.validate_every=50", "run.log_every=1"]
RUN += ["run.save_every=20", "run.comm_timeout=15"]


class Nodes:
    """Two network namespaces joined by a cable, or this machine alone."""

    def __init__(self) -> None:
        """Make them where that is allowed."""
        self.names = [f"soak{os.getpid() % 10_000}{letter}" for letter in "ab"]
        self.real = shutil.which("ip") is not None and not os.geteuid()
        self.real = self.real and self._try(f"ip netns add {self.names[0]}")
        if not self.real:
            return
        self._try(f"ip netns add {self.names[1]}")
        self._try(f"ip link add {self.names[0]} type veth peer name {self.names[1]}")
        for name, address in zip(self.names, ADDRESSES, strict=True):
            self._try(f"ip link set {name} netns {name}")
            self._try(f"ip -n {name} addr add {address}/24 dev {name}")
            self._try(f"ip -n {name} link set lo up")
        self.link("up")

    @staticmethod
    def _try(command: str) -> bool:
        return not subprocess.run(command.split(), capture_output=True).returncode

    def link(self, state: str) -> None:
        """Set the link up or down."""
        for name in self.names if self.real else ():
            self._try(f"ip -n {name} link set {name} {state}")

    def close(self) -> None:
        """Remove them."""
        for name in self.names if self.real else ():
            self._try(f"ip netns del {name}")

    def launchers(self, folder: Path) -> list[tuple[list[str], dict[str, str]]]:
        """Return what starts a job on each node, and with which environment."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = [str(BINARIES / "deepspeed"), f"--master_port={port}"]
        if not self.real:
            return [([*start, "--num_accelerators=2"], {})]
        hosts = folder / "hostfile"
        hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        start += ["--no_ssh", "--num_nodes=2", f"--master_addr={ADDRESSES[0]}"]
        start += [f"--hostfile={hosts}"]
        return [
            (
                ["ip", "netns", "exec", name, *start, f"--node_rank={number}"],
                {"GLOO_SOCKET_IFNAME": name},
            )
            for number, name in enumerate(self.names)
        ]


class Job:
    """One start of the run."""

    def __init__(self, nodes: Nodes, folder: Path, output: Path, *options: str) -> None:
        """Start it on every node."""
        self.output = output
        script = str(ROOT / "launch/pretrain.py")
        arguments = ["--data", str(folder / "data"), "--output", str(output), *RUN, *options]
        environment = os.environ | {
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        log = open(folder / f"{output.name}.log", "a")
        self.launchers = [
            subprocess.Popen(
                [*start, script, *arguments],
                env=environment | extra,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
            for start, extra in nodes.launchers(folder)
        ]
        log.close()

    def members(self) -> list[psutil.Process]:
        """Return all its processes that are alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ended = process.status() == psutil.STATUS_ZOMBIE
                if not ended and str(self.output) in process.cmdline():
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that train, by rank."""
        found = [p for p in self.members() if "RANK" in p.environ()]
        return sorted(found, key=lambda process: int(process.environ()["RANK"]))

    def wait(self, seconds: float) -> bool:
        """Wait until no rank runs, except stopped ones; return whether that happened in time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(psutil.Error):
                if all(p.status() == psutil.STATUS_STOPPED for p in self.ranks()):
                    return True
            time.sleep(0.1)
        return False

    def clean_up(self) -> None:
        """Kill the processes that are left, as a supervisor does."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()


def harm(job: Job, nodes: Nodes, what: str, chance: random.Random) -> None:
    """Send the signals, or cut the link, of one kind of harm."""
    members, ranks = job.members(), job.ranks()
    above = [p for p in members if p not in ranks]
    launchers = [p for p in above if "deepspeed.launcher.launch" in p.cmdline()]
    victims = {
        "kill rank 0": (ranks[:1], signal.SIGKILL),
        "kill rank 1": (ranks[1:], signal.SIGKILL),
        "stop rank 0": (ranks[:1], signal.SIGSTOP),
        "stop rank 1": (ranks[1:], signal.SIGSTOP),
        "kill launcher": (launchers[:1], signal.SIGKILL),
        "kill runner": ([p for p in above if p not in launchers][:1], signal.SIGKILL),
        "terminate rank": ([chance.choice(ranks)], signal.SIGTERM),
        "terminate launcher": (launchers[:1], signal.SIGTERM),
    }
    if what == "cut link":
        nodes.link("down")
        return
    if what == "kill node":
        there = [p for p in members if p.environ().get("GLOO_SOCKET_IFNAME") == nodes.names[1]]
        victims[what] = (sorted(there, key=lambda p: p not in ranks), signal.SIGKILL)
    for process in victims[what][0]:
        with contextlib.suppress(psutil.Error):
            process.send_signal(victims[what][1])


def rows(output: Path) -> list[dict[str, float]]:
    """Return the rows of a run without the scalars that depend on the machine."""
    found = read_metrics(output / "metrics.jsonl")
    timed = ("throughput/", "time/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in found]


def last_step(output: Path) -> int:
    """Return the step of the last row."""
    found = rows(output)
    return int(found[-1]["step"]) if found else 0


def inode(output: Path) -> int:
    """Return the inode of the file of metrics, which a start of the run replaces."""
    path = output / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def saved_step(output: Path) -> int:
    """Return the step of the newest checkpoint."""
    steps = [int(path.name[5:]) for path in (output / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def disturb(nodes: Nodes, folder: Path, minutes: float, seed: int) -> list[dict]:
    """Train and do harm until the time is up; return the harms and their costs."""
    chance, output, harms = random.Random(seed), folder / "disturbed", []
    until = time.monotonic() + 60 * minutes
    left: list[str] = []
    while True:
        started, before, file = time.monotonic(), saved_step(output), inode(output)
        job = Job(nodes, folder, output, "run.steps=1000000")
        try:
            # A start replaces the file, without the rows of steps that are repeated.
            while inode(output) == file or last_step(output) <= before:
                if time.monotonic() - started > 300:
                    raise SystemExit(f"no step within 300 s of a start; see {folder}")
                time.sleep(0.1)
            if harms:
                harms[-1]["resumed_after_s"] = round(time.monotonic() - started, 1)
            time.sleep(chance.uniform(2, 25))
            last = time.monotonic() > until
            if not left:  # each of them before any comes again
                left = HARMS + (HARMS_OF_NODES if nodes.real else [])
                chance.shuffle(left)
            what = "terminate rank" if last else left.pop()
            reached, since = last_step(output), time.monotonic()
            harm(job, nodes, what, chance)
            gone = job.wait(60)
            harms.append(
                {
                    "harm": what,
                    "at_step": reached,
                    "noticed_after_s": round(time.monotonic() - since, 1) if gone else None,
                    "steps_lost": max(0, reached - saved_step(output)),
                }
            )
            sys.stderr.write(f"{harms[-1]}\n")
        finally:
            job.clean_up()
            nodes.link("up")
        if last:
            return harms


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the maximum."""
    return {"median": statistics.median(values), "worst": max(values)} if values else {}


def main() -> None:
    """Disturb, repeat undisturbed, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--molecules", type=int, default=600)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    smiles = Path(RDConfig.RDDataDir) / "NCI/first_5K.smi"
    convert = [sys.executable, "-m", "data_tools.convert", "--format", "smiles", smiles]
    convert += ["--limit", arguments.molecules, "--output", folder / "data"]
    subprocess.run(list(map(str, convert)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    nodes = Nodes()
    try:
        harms = disturb(nodes, folder, arguments.minutes, arguments.seed)
        reached = saved_step(folder / "disturbed")
        job = Job(nodes, folder, folder / "whole", f"run.steps={reached}")
        codes = [launcher.wait() for launcher in job.launchers]
        job.clean_up()
    finally:
        nodes.close()
    found, expected = rows(folder / "disturbed"), rows(folder / "whole")
    # The undisturbed run validates at its last step, which the other has not come to as its last.
    expected = [row for row in expected if row["step"] < reached or "loss/total" in row]
    found = [row for row in found if row["step"] < reached or "loss/total" in row]
    same = not any(codes) and found == expected
    noticed = [one["noticed_after_s"] for one in harms if one["noticed_after_s"] is not None]
    resumed = [one["resumed_after_s"] for one in harms if "resumed_after_s" in one]
    result = {
        "minutes": arguments.minutes,
        "nodes": 2 if nodes.real else 1,
        "steps": reached,
        "restarts": len(harms) - 1,
        "equal_to_the_bit": same,
        "never_noticed": sum(one["noticed_after_s"] is None for one in harms),
        "steps_lost": sum(one["steps_lost"] for one in harms),
        "seconds_to_notice": summary(noticed),
        "seconds_to_resume": summary(resumed),
        "harms": harms,
    }
    print(json.dumps(result, indent=1))
    if not same:
        sys.exit(f"the losses differ; see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
