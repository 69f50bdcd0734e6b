"""Force models: training by double backward, and their use as a calculator of ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from fixtures.downstream import (
    finetune,
    read_predictions,
    read_results,
    save_checkpoint,
    write_table,
    write_trajectory,
)
from msde.ase import MSDECalculator
from msde.downstream.heads import load_model
from msde.errors import MsdeError
from msde.monitor.writer import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forces")
    write_trajectory(folder / "ethanol.npz")
    save_checkpoint(folder / "checkpoint")
    finetune(
        folder / "ethanol.npz", folder / "checkpoint", folder / "tuned", "train=40", "valid=10",
        "epochs=4", "lr=2e-3", "batch_size=8", task="md17-ethanol", targets=None,
    )  # fmt: skip
    return folder


@pytest.fixture
def atoms(folder):
    arrays = np.load(folder / "ethanol.npz")
    made = Atoms(arrays["z"], arrays["R"][0])
    made.calc = MSDECalculator(folder / "tuned")
    return made


def test_training_on_forces_lowers_their_error(folder):
    rows = read_metrics(folder / "tuned/seed-0/metrics.jsonl")
    errors = [row["force_mae/valid"] for row in rows]
    forces = np.load(folder / "ethanol.npz")["F"]
    assert errors[-1] < errors[0] and errors[-1] < 0.9 * np.abs(forces).mean()


def test_energies_are_centred_and_results_say_so(folder):
    results = read_results(folder / "tuned")
    energies = np.load(folder / "ethanol.npz")["E"]
    order = np.random.RandomState(42).permutation(60)
    assert results["energies_centred_at"][0] == pytest.approx(energies[order[:40]].mean())
    assert results["test"].keys() == {"force_mae", "energy_mae"}


def test_the_calculator_gives_the_energies_of_fine_tuning_in_ev(folder, atoms):
    arrays = np.load(folder / "ethanol.npz")
    for row in read_predictions(folder / "tuned/seed-0/predictions.csv")[:3]:
        atoms.positions = arrays["R"][int(row["line"]) - 1]
        expected = float(row["energy_predicted"]) * units.kcal / units.mol
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-4)


def test_forces_are_the_negative_gradient_and_add_up_to_zero(atoms):
    forces = atoms.get_forces()
    assert np.allclose(forces.sum(0), 0, atol=1e-9)
    step = 1e-4
    for atom, axis in ((0, 0), (2, 1), (5, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        numeric = -(energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(numeric, abs=1e-6)


def test_forces_in_training_are_those_of_evaluation(folder, batch):
    model = load_model(folder / "tuned/seed-0/model")
    _, trained = model.energy_and_forces(batch, create_graph=True)
    _, evaluated = model.energy_and_forces(batch)
    assert torch.allclose(trained, evaluated, atol=1e-5 * float(evaluated.abs().max()))


def test_dynamics_conserve_energy(atoms):
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(80)
    assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy() + 1e-3
    assert np.ptp(energies) > 0


def test_what_the_calculator_cannot_do_is_said(folder, atoms, tmp_path):
    atoms.pbc, atoms.cell = True, [9, 9, 9]
    with pytest.raises(MsdeError, match="no periodic boundaries"):
        atoms.get_potential_energy()
    write_table(tmp_path / "t.csv", 30)
    finetune(tmp_path / "t.csv", folder / "checkpoint", tmp_path / "tuned", "epochs=1")
    with pytest.raises(MsdeError, match="predicts no forces; fine-tune on a task md17-NAME"):
        MSDECalculator(tmp_path / "tuned")
