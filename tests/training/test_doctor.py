"""What the doctor finds: a line a check, and what to do where something is wrong."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fixtures.commands import run_here
from msde.errors import MsdeError
from msde.training import doctor


def test_versions_are_those_that_the_package_asks_for(monkeypatch):
    found = {finding.about: finding for finding in doctor.versions()}
    assert str(found["deepspeed"]) == "fine  deepspeed: 0.19.8" and "torch" in found
    assert not any(finding.advice for finding in found.values())
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda name: ["torch<1", "nothing>2"]
    )
    lines = [str(finding) for finding in doctor.versions()][1:]
    assert lines[0].startswith("FIX   torch: ") and lines[0].endswith('; pip install "torch<1"')
    assert lines[1] == 'FIX   nothing: not installed; pip install "nothing>2"'


def test_modules_that_python_compiles_at_every_start_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.pycache_prefix", str(tmp_path))
    assert "python -m compileall -q " in doctor.modules().advice.replace("python3", "python")
    kept = Path(importlib.util.cache_from_source(torch.__file__))
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert not doctor.modules().advice


def test_data_and_output(shard_dir, tmp_path, monkeypatch):
    data, system = doctor.data_set(str(shard_dir))
    assert data.found.endswith("molecules in 1 shards") and not data.advice and not system.advice
    monkeypatch.setattr(doctor, "_file_system", lambda path: "nfs4")
    assert "data.stage_dir" in list(doctor.data_set(str(shard_dir)))[1].advice
    (missing,) = doctor.data_set(str(tmp_path))
    assert missing.advice.startswith(f"{tmp_path} holds no finished data set")
    assert "GiB free" in doctor.output_folder(tmp_path / "a/b").found
    (tmp_path / "file").touch()
    taken = doctor.output_folder(tmp_path / "file")
    assert taken.advice and taken.found.endswith("is a file")


def test_data_sets_are_given_as_to_pretraining(shard_dir, tmp_path, monkeypatch):
    for check in ("versions", "accelerators", "limits"):
        monkeypatch.setattr(doctor, check, lambda: ())
    for check in ("modules", "compiler", "interfaces", "all_reduce"):
        monkeypatch.setattr(doctor, check, lambda: doctor.Finding("machine", "left out"))
    items = ["--data", f"{shard_dir}=0.5", "--data", f"file://{shard_dir}", "--data", "nowhere"]
    found = run_here("msde.launch.doctor", *items)
    lines = [line for line in found.stdout.splitlines() if "  data: " in line]
    assert [line[:4] for line in lines] == ["fine", "fine", "FIX "], found
    assert found.returncode == 1 and "data folder nowhere does not exist" in lines[2]


def test_nodes_that_do_not_answer_are_named(tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("nowhere.invalid slots=2\n")
    assert [f for f in doctor.nodes(hostfile) if f.about == "node nowhere.invalid"][0].advice
    hostfile.write_text("what is this\n")
    with pytest.raises(MsdeError, match="is not a hostfile"):
        list(doctor.nodes(hostfile))


@pytest.mark.slow
def test_the_command_ends_with_an_all_reduce(shard_dir):
    found = run_here("msde.launch.doctor", "--data", shard_dir)
    assert found.returncode == ("FIX" in found.stdout)
    assert "fine  all-reduce of 2 ranks by gloo: " in found.stdout and "GB/s" in found.stdout
