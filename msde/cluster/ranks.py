"""Rank and world size of this process, from the environment of any launcher."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from msde.errors import MsdeError

# launcher -> its variables of rank, local rank, world size and local world size. Processes of
# mpirun may have those of SLURM, too: of the one task on each node by which it starts them.
_LAUNCHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpiexec": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
}


def map_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    deepspeed and torchrun set these variables; srun and mpirun set others. A process without a
    launcher is the only rank.

    Raises:
        MsdeError: there are several ranks, but the rank or the address of the first is unknown.
    """
    if "RANK" in environment:
        return {}
    for launcher, names in _LAUNCHERS.items():
        rank, local_rank, world_size, local_size = (environment.get(name) for name in names)
        if world_size is None or int(world_size) == 1:
            continue
        if launcher == "mpiexec" and local_rank is None and "SLURM_PROCID" in environment:
            continue  # srun sets PMI_RANK and PMI_SIZE, too
        if rank is None or local_rank is None:
            raise _unknown_rank(names[2], world_size)
        # A GPU that is the only one a task sees has the number 0. DeepSpeed ends a run in which the
        # launcher's own variable says something else.
        only = {"LOCAL_RANK": "0", names[1]: "0"} if _sees_one_gpu(environment) else {}
        return {
            "RANK": rank,
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": (local_size or "1").partition("(")[0].partition(",")[0],
            **_rendezvous(environment, launcher),
            **only,
        }
    if int(environment.get("WORLD_SIZE") or 1) > 1:
        raise _unknown_rank("WORLD_SIZE", environment["WORLD_SIZE"])
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }


def _sees_one_gpu(environment: Mapping[str, str]) -> bool:
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and "," not in visible


def _unknown_rank(name: str, world_size: str) -> MsdeError:
    return MsdeError(
        f"{name} is {world_size} but RANK is not set: use the deepspeed launcher, torchrun or "
        "srun, which set it"
    )


def _rendezvous(environment: Mapping[str, str], launcher: str) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT: as set, or else derived from SLURM's job."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    nodes, job = environment.get("SLURM_STEP_NODELIST"), environment.get("SLURM_JOB_ID")
    step = environment.get("SLURM_STEP_ID", "0")  # several can run at a time
    if address is None and nodes:
        address = first_host(nodes)
    if port is None and job:
        port = str(20_000 + (int(job) + 101 * int(step)) % 20_000)
    if address is None or port is None:
        raise MsdeError(
            f"{launcher} does not set the address of the first rank; set MASTER_ADDR to the first "
            "node and MASTER_PORT to a free port"
        )
    return {"MASTER_ADDR": address, "MASTER_PORT": port}


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list such as node[003-005,9],other."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if found is None:
        raise MsdeError(f"SLURM_STEP_NODELIST {nodes!r} cannot be read; set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank() -> int:
    """Return the rank of this process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))
