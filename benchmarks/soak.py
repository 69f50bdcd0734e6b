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
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from shared import ROOT, convert_nci

sys.path.insert(0, str(ROOT / "tests"))

from fixtures.jobs import (  # noqa: E402
    Job,
    kill_members,
    members,
    ranks_of,
    read_rows,
    saved_steps,
    steps,
)
from fixtures.launching import deepspeed  # noqa: E402
from fixtures.nodes import NoNodes, link, start_on, two_nodes  # noqa: E402

HARMS = ["kill rank 0", "kill rank 1", "stop rank 0", "stop rank 1", "kill launcher"]
HARMS += ["kill runner", "terminate rank", "terminate launcher"]
HARMS_OF_NODES = ["kill node", "cut link"]
RUN = ["--preset=paper", "model.hidden_dim=64", "data.molecules_per_step=48", "data.workers=2"]
RUN += ["data.validation_fraction=0.05", "run.validate_every=50", "run.log_every=1"]
RUN += ["run.save_every=20", "run.comm_timeout=15"]


def start(nodes: Sequence[str], logs: Path, output: Path, *options: str) -> list[Job]:
    """Start the run on every node, or on this machine; return its launchers."""
    data = output.parent / "data"
    arguments = ["--data", data, "--output", output, *RUN, *options]
    if nodes:
        return start_on(nodes, logs, *arguments)
    return [Job(logs, *arguments, launcher=deepspeed())]


def wait(output: Path, seconds: float) -> bool:
    """Wait until no rank runs, except stopped ones; return whether that happened in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(psutil.Error):
            if all(p.status() == psutil.STATUS_STOPPED for p in ranks_of(output)):
                return True
        time.sleep(0.1)
    return False


def clean_up(output: Path, launchers: list[Job]) -> None:
    """Kill the processes that are left, as a supervisor does."""
    kill_members(output)
    for launcher in launchers:
        launcher.kill()


def harm(output: Path, nodes: Sequence[str], what: str, chance: random.Random) -> None:
    """Send the signals, or cut the link, of one kind of harm."""
    alive, ranks = members(output), ranks_of(output)
    above = [p for p in alive if p not in ranks]
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
        link(nodes, "down")
        return
    if what == "kill node":
        there = [p for p in alive if p.environ().get("GLOO_SOCKET_IFNAME") == nodes[1]]
        victims[what] = (sorted(there, key=lambda p: p not in ranks), signal.SIGKILL)
    for process in victims[what][0]:
        with contextlib.suppress(psutil.Error):
            process.send_signal(victims[what][1])


def inode(output: Path) -> int:
    """Return the inode of the file of metrics, which a start of the run replaces."""
    path = output / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def saved_step(output: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max(saved_steps(output), default=0)


def disturb(nodes: Sequence[str], folder: Path, minutes: float, seed: int) -> list[dict]:
    """Train and do harm until the time is up; return the harms and their costs."""
    chance, output, harms = random.Random(seed), folder / "disturbed", []
    until = time.monotonic() + 60 * minutes
    left: list[str] = []
    while True:
        started, before, file = time.monotonic(), saved_step(output), inode(output)
        launchers = start(nodes, folder / f"start-{len(harms)}", output, "run.steps=1000000")
        try:
            # A start replaces the file, without the rows of steps that are repeated.
            while inode(output) == file or max(steps(output), default=0) <= before:
                if time.monotonic() - started > 300:
                    raise SystemExit(f"no step within 300 s of a start; see {folder}")
                time.sleep(0.1)
            if harms:
                harms[-1]["resumed_after_s"] = round(time.monotonic() - started, 1)
            time.sleep(chance.uniform(2, 25))
            last = time.monotonic() > until
            if not left:  # each of them before any comes again
                left = HARMS + (HARMS_OF_NODES if nodes else [])
                chance.shuffle(left)
            what = "terminate rank" if last else left.pop()
            reached, since = steps(output)[-1], time.monotonic()
            harm(output, nodes, what, chance)
            gone = wait(output, 60)
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
            clean_up(output, launchers)
            link(nodes, "up")
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
    convert_nci(folder / "data", arguments.molecules)
    with contextlib.ExitStack() as stack:
        nodes: Sequence[str] = ()
        with contextlib.suppress(NoNodes):
            nodes = stack.enter_context(two_nodes())
        harms = disturb(nodes, folder, arguments.minutes, arguments.seed)
        reached = saved_step(folder / "disturbed")
        whole = start(nodes, folder / "start-whole", folder / "whole", f"run.steps={reached}")
        codes = [launcher.processes[0].wait() for launcher in whole]
        clean_up(folder / "whole", whole)
    found, expected = read_rows(folder / "disturbed"), read_rows(folder / "whole")
    # The undisturbed run validates at its last step, which the other has not come to as its last.
    expected = [row for row in expected if row["step"] < reached or "loss/total" in row]
    found = [row for row in found if row["step"] < reached or "loss/total" in row]
    same = not any(codes) and found == expected
    noticed = [one["noticed_after_s"] for one in harms if one["noticed_after_s"] is not None]
    resumed = [one["resumed_after_s"] for one in harms if "resumed_after_s" in one]
    result = {
        "minutes": arguments.minutes,
        "nodes": len(nodes) or 1,
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
