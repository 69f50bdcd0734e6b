"""What a machine needs to train: each check is one line, fine or what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from msde.data.manifest import read_manifest, root_and_weight
from msde.errors import MsdeError, one_line
from msde.ops import build, cpp
from msde.ops.dispatch import CAPABILITY

OPEN_FILES = 4096
SHARED_MEMORY = 1 << 30  # bytes of /dev/shm that NCCL and the ranks' buffers need at least
FREE_SPACE = 10 << 30  # bytes for checkpoints
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "9p"}
REDUCED = 16 << 20  # numbers of the all-reduce that is timed
ROUNDS = 5
START_LIMIT = 120.0  # s for two processes to import torch and to meet
ANSWER_LIMIT = 120.0  # s for a node to answer


@dataclass(frozen=True)
class Finding:
    """The result of a check; `advice` says what to do, and is empty where all is fine."""

    about: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        state = "FIX " if self.advice else "fine"
        return f"{state}  {self.about}: {self.found}" + f"; {self.advice}" * bool(self.advice)


def examine(
    data: Sequence[str] = (), output: Path | None = None, hostfile: Path | None = None
) -> Iterator[Finding]:
    """Yield the findings about this machine and, if given, folders and the nodes of a hostfile.

    Args:
        data: folders or URLs of shards, as `launch/pretrain.py` takes them.

    Raises:
        MsdeError: the hostfile cannot be read.
    """
    yield from versions()
    yield modules()
    yield compiler()
    yield from accelerators()
    yield from limits()
    yield interfaces()
    for item in data:
        yield from data_set(root_and_weight(item)[0])
    if output is not None:
        yield output_folder(output)
    yield all_reduce()
    if hostfile is not None:
        yield from nodes(hostfile)


def versions() -> Iterator[Finding]:
    """Compare installed packages with those that msde asks for."""
    yield Finding("Python", sys.version.split()[0])
    for text in importlib.metadata.requires("msde") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(wanted.name, "not installed", f'pip install "{text}"')
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        yield Finding(wanted.name, version, "" if fits else f'pip install "{text}"')


def modules() -> Finding:
    """Look whether Python keeps the modules that it has compiled."""
    if Path(importlib.util.cache_from_source(torch.__file__)).exists():
        return Finding("Python's modules", "compiled")
    site = Path(torch.__file__).parents[1]
    return Finding(
        "Python's modules",
        "compiled anew at every start, which takes half a minute or more",
        f"unset PYTHONDONTWRITEBYTECODE, or once: {sys.executable} -m compileall -q {site}",
    )


def compiler() -> Finding:
    """Look whether the fused operators for CPUs can be compiled."""
    try:
        found = build.compiler()[0]
    except FileNotFoundError as error:
        return Finding("C++ compiler", str(error), "install g++, or training on CPUs is slower")
    if cpp.load() is None:
        return Finding("C++ compiler", f"{found} fails", "see its message above")
    return Finding("C++ compiler", f"{found}, the operators for CPUs are compiled")


def accelerators() -> Iterator[Finding]:
    """Name the GPUs, or the cores."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    yield Finding("CPU", f"{cores} cores, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        driver = Path("/dev/nvidiactl").exists()
        advice = f"there is a driver, but torch {torch.__version__} sees no GPU" if driver else ""
        yield Finding("GPU", "none", advice)
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        text = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.major}.{facts.minor}"
        least = ".".join(map(str, CAPABILITY))
        fits = (facts.major, facts.minor) >= CAPABILITY
        advice = "" if fits else f"compute capability {least} or more is needed"
        yield Finding(f"GPU {number}", text, advice)


def limits() -> Iterator[Finding]:
    """Look at open files and shared memory."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # to which data sets raise the limit
    few = most != resource.RLIM_INFINITY and most < OPEN_FILES
    text = "unlimited" if most == resource.RLIM_INFINITY else str(most)
    yield Finding("open files", text, f"ask for a hard limit of {OPEN_FILES}" if few else "")
    if not Path("/dev/shm").exists():
        yield Finding("shared memory", "no /dev/shm", "mount it")
        return
    free = shutil.disk_usage("/dev/shm").free
    advice = "in a container give --shm-size=8g" if free < SHARED_MEMORY else ""
    yield Finding("shared memory", f"{free / 2**30:.1f} GiB free", advice)


def interfaces() -> Finding:
    """Name the network interfaces that ranks of several nodes could use."""
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup and name != "lo"}
    found = [
        f"{name} {address.address}"
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if name in up and address.family == socket.AF_INET
    ]
    chosen = {k: os.environ[k] for k in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
              if k in os.environ}  # fmt: skip
    hint = ""
    if len(found) > 1 and not chosen:
        hint = " (several nodes: choose with NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME)"
    named = "".join(f", {name}={value}" for name, value in chosen.items())
    return Finding("network", (", ".join(found) or "loopback only") + named + hint)


def data_set(root: str) -> Iterator[Finding]:
    """Read the manifest of a data set, and look at the file system that its folder is on."""
    try:
        manifest = read_manifest(root)
    except MsdeError as error:
        yield Finding("data", "cannot be used", str(error))
        return
    molecules = sum(shard["molecules"] for shard in manifest["shards"])
    yield Finding("data", f"{molecules} molecules in {len(manifest['shards'])} shards")
    if "://" in root:  # copied, always
        return
    kind = _file_system(Path(root))
    remote = kind.split(".")[0] in NETWORK_FILE_SYSTEMS
    advice = "give data.stage_dir=DIR, a local folder that shards are copied to" if remote else ""
    yield Finding("file system of the data", kind, advice)


def output_folder(folder: Path) -> Finding:
    """Look whether a run can be written, and how much space there is."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return Finding("output", f"{there} is a file", "choose another --output")
    if not os.access(there, os.W_OK):
        return Finding("output", f"{there} is not writable", "choose another --output")
    free = shutil.disk_usage(there).free
    advice = "checkpoints may need more; choose another disk" if free < FREE_SPACE else ""
    return Finding("output", f"{free / 2**30:.0f} GiB free, {_file_system(there)}", advice)


def _file_system(path: Path) -> str:
    """Return the type of the file system of a path, as ext4 or nfs4."""
    place = path.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown"


def all_reduce() -> Finding:
    """Time an all-reduce of two ranks on this machine: by NCCL on two GPUs, else by gloo."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    context = multiprocessing.get_context("spawn")
    about = f"all-reduce of 2 ranks by {backend}"
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        ranks = [
            context.Process(target=_reduce, args=(rank, backend, folder, sender), daemon=True)
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        sender.close()  # so that the end of both ranks is seen
        try:
            answer = receiver.recv() if receiver.poll(START_LIMIT) else None
        except EOFError:
            answer = "a rank died"
        finally:
            for process in ranks:
                process.join(5)
                process.kill()
    if not isinstance(answer, float):
        reason = answer or f"no answer within {START_LIMIT:.0f} s"
        return Finding(about, reason, "check the network interface and the firewall")
    rate = REDUCED * 4 / answer / 1e9
    return Finding(about, f"{rate:.2f} GB/s ({REDUCED * 4e-6:.0f} MB in {answer * 1e3:.0f} ms)")


def _reduce(rank: int, backend: str, folder: str, sender: object) -> None:
    """Run one rank; the first sends the seconds of an all-reduce, or the error."""
    try:
        torch.set_num_threads(1)
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(backend, f"file://{folder}/meet", rank=rank, world_size=2)
        numbers = torch.ones(REDUCED, device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(numbers)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(numbers)
        float(numbers[0])  # waits for a GPU
        answer: float | str = (time.perf_counter() - start) / ROUNDS
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        answer = one_line(error)
    if rank == 0 or isinstance(answer, str):
        sender.send(answer)  # type: ignore[attr-defined]


def nodes(hostfile: Path) -> Iterator[Finding]:
    """Ask each node of a hostfile by ssh for its msde and its GPUs."""
    from deepspeed.launcher.runner import fetch_hostfile

    try:
        pool = fetch_hostfile(str(hostfile))
    except ValueError as error:
        raise MsdeError(f"{hostfile} is not a hostfile: {error}") from error
    if not pool:
        raise MsdeError(f"{hostfile} names no node; a line is NAME slots=N")
    if shutil.which("pdsh") is None:
        yield Finding("pdsh", "not installed", "install it, or use SLURM or mpirun")
    question = (
        f"{sys.executable} -c 'import msde, torch; "
        "print(msde.__version__, torch.__version__, torch.cuda.device_count())'"
    )
    here = f"{importlib.metadata.version('msde')} {torch.__version__}"
    for name, slots in pool.items():
        command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", name, question]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_LIMIT)
        except subprocess.TimeoutExpired:
            slow = f"no answer within {ANSWER_LIMIT:.0f} s"
            yield Finding(
                f"node {name}", slow, "see how long 'ssh NODE python -c \"import torch\"' takes"
            )
            continue
        except OSError as error:
            yield Finding(f"node {name}", str(error), "install ssh")
            continue
        if answer.returncode:
            lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
            advice = "the project and its Python must lie at the same path, reached by ssh"
            yield Finding(f"node {name}", lines[-1], advice)
            continue
        lines = answer.stdout.strip().splitlines()  # a login may greet first
        found, _, gpus = (lines[-1] if lines else "").rpartition(" ")
        advice = "" if found == here else f"this machine has msde and torch {here}"
        if not advice and int(gpus) < slots and (int(gpus) or torch.cuda.is_available()):
            advice = f"the hostfile says slots={slots}"
        yield Finding(f"node {name}", f"msde and torch {found}, {gpus} GPUs", advice)
