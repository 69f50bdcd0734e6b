"""benchmarks/forces.py: two packages' SchNet, trained in the same way."""

import dataclasses
import importlib.util
import json
import sys

import pytest
import torch

from fixtures.downstream import save_checkpoint, write_trajectory
from fixtures.models import make_small
from fixtures.paths import ROOT
from msde.downstream.heads import parameter_groups
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task


@pytest.fixture(scope="module")
def forces():
    spec = importlib.util.spec_from_file_location("forces", ROOT / "benchmarks/forces.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network(forces):
    torch.manual_seed(0)
    return forces.PygSchNet(make_small("base").config, "add")


def test_the_other_network_learns_all_of_its_weights(network):
    settings = make_settings(get_task("md17-ethanol"))
    groups = parameter_groups(network, settings)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_the_other_networks_forces_are_the_negative_gradient(network, batch):
    network.double()
    pos = batch.pos.double()

    def at(positions):
        return network.energy_and_forces(dataclasses.replace(batch, pos=positions))

    energy, forces = at(pos)
    assert energy.shape == (batch.num_graphs, 1)
    step = torch.zeros_like(pos)
    step[3, 1] = 1e-4
    moved = [at(pos + sign)[0].sum() for sign in (step, -step)]
    numeric = -(moved[0] - moved[1]) / 2e-4
    assert forces[3, 1].item() == pytest.approx(numeric.item(), rel=1e-4, abs=1e-8)


def test_all_arms_train_on_the_same_split(tmp_path, monkeypatch, forces):
    write_trajectory(tmp_path / "ethanol.npz")
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    output = tmp_path / "out"
    command = ["forces.py", "--data", str(tmp_path / "ethanol.npz"), "--output", str(output)]
    command += ["--checkpoint", str(checkpoint), "epochs=1", "batch_size=8", "train=10", "valid=5"]
    monkeypatch.setattr(sys, "argv", command)
    forces.main()
    found = json.loads((output / "forces.json").read_text())
    assert list(found) == [f"{arm}, seed 0" for arm in forces.ARMS]
    assert all(row["force_mae"] > 0 and row["curve"] for row in found.values())
    splits = {(output / arm.replace(" ", "-") / "split.json").read_text() for arm in forces.ARMS}
    assert len(splits) == 1
    done = (output / "pyg-random/seed-0/results.json").stat().st_mtime_ns
    forces.main()
    assert (output / "pyg-random/seed-0/results.json").stat().st_mtime_ns == done
