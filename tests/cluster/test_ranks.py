"""The environments of launchers, and the example files of launch/."""

import subprocess
import sys

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from fixtures.paths import LAUNCH
from msde.cluster.launcher import runs_launcher
from msde.cluster.ranks import first_host, map_environment
from msde.errors import MsdeError

ONE_A_NODE = {  # the first task of a step with one on each of two nodes
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NODELIST": "gpu[017-018]",
    "SLURM_JOB_ID": "1234567",
}


def test_srun_is_mapped():
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[017-018]",
        "SLURM_JOB_ID": "1234567",
    }
    assert map_environment(slurm) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu017",
        "MASTER_PORT": str(20_000 + 1234567 % 20_000),
    }
    alone = map_environment(slurm | {"CUDA_VISIBLE_DEVICES": "1"})  # a GPU for each task
    assert (alone["LOCAL_RANK"], alone["SLURM_LOCALID"], alone["RANK"]) == ("0", "0", "5")
    assert map_environment(slurm | {"CUDA_VISIBLE_DEVICES": "0,1"})["LOCAL_RANK"] == "1"
    chosen = map_environment(slurm | {"MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("a", "1")


def test_mpirun_is_mapped_and_missing_variables_are_named():
    mpi = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    with pytest.raises(MsdeError, match="set MASTER_ADDR to the first node"):
        map_environment(mpi)
    mapped = map_environment(mpi | {"MASTER_ADDR": "node", "MASTER_PORT": "29500"})
    assert (mapped["RANK"], mapped["WORLD_SIZE"]) == ("1", "2")


def test_mpirun_decides_where_slurm_starts_its_daemons():
    """mpirun has srun start one daemon on each node, whose variables its processes inherit."""
    inherited = {
        **ONE_A_NODE,
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_LOCAL_RANK": "5",
        "OMPI_COMM_WORLD_SIZE": "16",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
        "MASTER_ADDR": "gpu017",
        "MASTER_PORT": "29500",
    }
    mapped = map_environment(inherited)
    assert [mapped[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["5", "5", "16"]


def test_intel_mpi_decides_where_slurm_starts_its_proxies():
    inherited = {
        **ONE_A_NODE,
        "PMI_RANK": "5",
        "PMI_SIZE": "16",
        "MPI_LOCALRANKID": "5",
        "MPI_LOCALNRANKS": "8",
    }
    mapped = map_environment(inherited)
    assert [mapped[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["5", "5", "16"]
    # srun itself speaks PMI to its tasks, too.
    of_srun = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "PMI_RANK": "1", "PMI_SIZE": "2"}
    del inherited["MPI_LOCALRANKID"]
    assert map_environment(inherited | of_srun)["WORLD_SIZE"] == "2"


def test_steps_of_a_job_that_run_at_a_time_have_ports_of_their_own():
    ports = [map_environment(ONE_A_NODE | {"SLURM_STEP_ID": n})["MASTER_PORT"] for n in "012"]
    assert len(set(ports)) == 3 and ports[0] == map_environment(ONE_A_NODE)["MASTER_PORT"]


def test_variables_of_deepspeed_and_torchrun_are_kept():
    assert map_environment({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0"}) == {}


def test_a_process_without_a_launcher_is_the_only_rank():
    alone = map_environment({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert (alone["RANK"], alone["WORLD_SIZE"]) == ("0", "1")
    with pytest.raises(MsdeError, match="RANK is not set"):
        map_environment({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[003-005,9],m", "n003"),
        ("n[7]", "n7"),
        ("r1n[02-03]x", "r1n02x"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_the_hostfile_is_one_that_deepspeed_reads():
    found = fetch_hostfile(str(LAUNCH / "hostfile"))
    assert len(found) == 2 and all(slots == 8 for slots in found.values())


def run_batch_script(tmp_path, srun):
    """Run slurm.sbatch with stand-ins for SLURM; return its exit code and their calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    calls = tmp_path / "calls"
    for name, body in {"srun": srun, "scontrol": "", "module": ""}.items():
        (tools / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {calls}\n{body}\n')
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "SLURM_JOB_ID": "42",
        "DATA": "data",
        "OUTPUT": str(tmp_path / "run"),
    }
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch"], env=environment, capture_output=True, text=True
    )
    return done.returncode, calls.read_text()


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ([sys.executable, "-u", "-m", "deepspeed.launcher.launch"], True),
        ([sys.executable, "/usr/bin/deepspeed", "x"], True),
        (["torchrun"], True),
        (["sh", "job.sh", "deepspeed"], False),
        (["tmux", "new", "-s", "torchrun"], False),
        ([sys.executable, "train.py", "deepspeed"], False),
        ([sys.executable, "-X", "dev", "-m", "deepspeed.launcher.launch"], True),
        ([sys.executable, "-W", "ignore", "/usr/bin/deepspeed"], True),
    ],
)
def test_a_launcher_is_known_by_its_program_not_by_its_arguments(command, is_launcher):
    assert runs_launcher([str(word) for word in command]) == is_launcher


def test_the_batch_script_is_what_slurm_reads():
    text = (LAUNCH / "slurm.sbatch").read_text()
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sbatch"], check=True)
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for needed in ("--signal=USR2@120", "--requeue", "--nodes", "--ntasks-per-node"):
        assert any(needed in option for option in options), needed


@pytest.mark.parametrize(
    ("srun", "code", "requeued"),
    [
        ("touch $OUTPUT/DONE", 0, False),
        ("touch $OUTPUT/PREEMPTED", 75, True),
        ("exit 4", 4, False),
        ("exit 0", 1, False),  # a success that is none
    ],
)
def test_the_batch_script_requeues_what_was_preempted(tmp_path, srun, code, requeued):
    found, calls = run_batch_script(tmp_path, srun)
    assert found == code
    assert ("scontrol requeue 42" in calls) == requeued
    assert "launch/pretrain.py --data data --output" in calls
