"""Whole runs that something happens to: started, harmed, waited for, and looked at afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from test_engine import BINARIES, ENVIRONMENT, PRETRAIN, ROOT, free_port

from msde.monitor.writer import read_metrics

HARM = Path(__file__).parent / "harm/pretrain.py"
TINY = [
    "--preset=paper",
    "model.hidden_dim=16",
    "data.validation_fraction=0",
    "data.molecules_per_step=24",
    "run.log_every=1",
    "optim.lr=1e-4",
]
PATIENCE = 300  # seconds for whatever is not promised to be quick


class Job:
    """Ranks that were started together, each with its output in a file."""

    def __init__(self, folder, *arguments, ranks=2, harm=None, environment=(), launcher=None):
        """Start `ranks` processes as torchrun does, or one launcher that does."""
        self.script = PRETRAIN if harm is None else HARM
        self.arguments = list(map(str, arguments))
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        base = ENVIRONMENT | {"HARM": json.dumps(harm)} | dict(environment)
        if launcher is not None:
            self.processes = [self._start(base, "launcher", launcher)]
            return
        base |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.processes = [
            self._start(base | {"RANK": str(r), "LOCAL_RANK": str(r)}, r, [sys.executable])
            for r in range(ranks)
        ]

    def _start(self, environment, name, prefix):
        log = open(self.folder / f"{name}.log", "w")
        command = [*map(str, prefix), str(self.script), *self.arguments]
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
        )

    def log(self, name=0):
        return (self.folder / f"{name}.log").read_text()

    def kill(self):
        for process in self.processes:
            for child in descendants(process.pid):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.kill()
            process.wait()

    def wait(self, timeout=PATIENCE):
        """Wait for all and return their exit codes."""
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            logs = "\n".join(p.read_text()[-2000:] for p in self.folder.glob("*.log"))
            raise AssertionError(f"still running after {timeout} s\n{logs}") from None
        finally:
            self.kill()


def deepspeed(ranks=2):
    """The launcher's command for a job of one node."""
    return [BINARIES / "deepspeed", f"--num_accelerators={ranks}", f"--master_port={free_port()}"]


def finish(folder, *arguments, **options):
    """Run a job to its end, which has to be a good one, and return what the first rank wrote."""
    job = Job(folder, *arguments, **options)
    codes = job.wait()
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.log")))
    assert not any(codes), f"{codes}\n{logs}"
    return job.log("launcher" if options.get("launcher") else 0)


def descendants(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def members(output):
    """All processes whose command line names the output folder of a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and str(output) in process.cmdline():
                found.append(process)
    return found


def ranks_of(output):
    """The processes that train, in the order of their ranks."""
    scripts = {str(PRETRAIN), str(HARM)}
    found = [p for p in members(output) if scripts & set(p.cmdline()[1:3])]
    return sorted(found, key=lambda p: int(p.environ()["RANK"]))


def wait_for(condition, timeout=PATIENCE, pause=0.05):
    """Wait until a condition holds and return the seconds it took."""
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < timeout, f"not within {timeout} s"
        time.sleep(pause)
    return time.monotonic() - since


def send(process, number):
    os.kill(process.pid, number)


def kill_when(condition, process):
    wait_for(condition)
    send(process, signal.SIGKILL)


def read_rows(output):
    """The rows of metrics.jsonl without what depends on the machine."""
    timed = ("throughput/", "time/", "memory/")
    rows = read_metrics(output / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


def losses(output):
    return [row["loss/total"] for row in read_rows(output) if "loss/total" in row]


def steps(output):
    return [row["step"] for row in read_rows(output)]


def events(output):
    return [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]


def saved_steps(output):
    return sorted(int(p.name[5:]) for p in (output / "checkpoints").glob("step-*"))


def manifest(output, step):
    path = output / f"checkpoints/step-{step:09d}/MANIFEST.json"
    return json.loads(path.read_text())
