"""Force models: training by double backward, and their use as a calculator of ASE."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
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
from msde.data_tools.convert import convert
from msde.data_tools.options import Options
from msde.downstream.heads import load_model, save_model
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


@pytest.fixture(params=[1, 2])
def models(request, folder, tmp_path):
    """A fine-tuning of one model, and one of two: the other has another head and mean."""
    if request.param == 1:
        return folder / "tuned"
    one, other = (tmp_path / f"seed-{seed}/model" for seed in range(2))
    shutil.copytree(folder / "tuned/seed-0/model", one)
    model = load_model(one)
    facts = dataclasses.replace(model.facts, mean=(model.facts.mean[0] + 5,))
    model.facts, model.head.weight.data = facts, model.head.weight.data.flip(1)
    save_model(model, other)
    return tmp_path


def test_the_energy_is_the_mean_of_all_models(atoms, models):
    each = []
    for path in models.glob("seed-*/model"):
        atoms.calc = MSDECalculator(path)
        each.append((atoms.get_potential_energy(), atoms.get_forces()))
    atoms.calc = MSDECalculator(models)
    energies, forces = zip(*each, strict=True)
    assert len(set(energies)) == len(energies)
    assert atoms.get_potential_energy() == pytest.approx(np.mean(energies))
    assert np.allclose(atoms.get_forces(), np.mean(forces, 0))


def test_forces_are_the_negative_gradient_and_add_up_to_zero(atoms, models):
    atoms.calc = MSDECalculator(models)
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
    atoms.pbc = False
    for others, message in (
        ({"symbols": "X2"}, "found X2, expected elements 1 to 118"),
        ({"symbols": ""}, "found no atoms, expected elements"),
        ({"symbols": "C2", "positions": [[0, 0, 0], [np.nan, 0, 0]]}, "positions are not finite"),
    ):
        with pytest.raises(MsdeError, match=message):
            Atoms(**others, calculator=atoms.calc).get_potential_energy()
    write_table(tmp_path / "t.csv", 30)
    finetune(tmp_path / "t.csv", folder / "checkpoint", tmp_path / "tuned", "epochs=1")
    with pytest.raises(MsdeError, match="predicts no forces; fine-tune on a task md17-NAME"):
        MSDECalculator(tmp_path / "tuned")
    with pytest.raises(MsdeError, match="folder is None, expected --output of a fine-tuning"):
        MSDECalculator(None)


def write_extxyz(path, folder, unit):
    """The frames as ASE writes them, energies and forces in a unit, in eV; return them."""
    arrays, frames = np.load(folder / "ethanol.npz"), []
    for pos, energy, forces in zip(arrays["R"], arrays["E"], arrays["F"], strict=True):
        frame = Atoms(arrays["z"], pos)
        frame.calc = SinglePointCalculator(frame, energy=energy * unit, forces=forces * unit)
        frames.append(frame)
    write(path, frames, format="extxyz")
    return frames


def test_forces_of_a_molecule_of_ones_own(folder, tmp_path):
    """Energies in eV are learnt in eV: the calculator gives what training predicted."""
    frames = write_extxyz(tmp_path / "mine.xyz", folder, units.kcal / units.mol)
    results = finetune(
        tmp_path / "mine.xyz", folder / "checkpoint", tmp_path / "tuned", "epochs=1",
        targets=["energy"], metric="force_mae", options=Options(label_columns=("energy=eV",)),
    )  # fmt: skip
    assert results["units"] == ["eV"] and results["settings"]["view"] == "3d"
    assert results["split"]["train"] == 48 and results["test"].keys() == {"force_mae", "energy_mae"}
    row = read_predictions(tmp_path / "tuned/seed-0/predictions.csv")[0]
    lines = (tmp_path / "mine.xyz").read_text().splitlines()
    frame = frames[(int(row["line"]) - 1) * len(frames) // len(lines)]
    assert frame.get_potential_energy() == pytest.approx(float(row["energy"]), abs=1e-6)
    frame.calc = MSDECalculator(tmp_path / "tuned")
    assert frame.get_potential_energy() == pytest.approx(float(row["energy_predicted"]), abs=1e-5)


def test_forces_of_ones_own_need_the_unit(folder, tmp_path):
    write_extxyz(tmp_path / "mine.xyz", folder, 1.0)
    given = {"targets": ["energy"], "metric": "force_mae"}
    message = "the unit of energy is not stated, which forces need; give --label-columns energy=eV"
    with pytest.raises(MsdeError, match=message):
        finetune(tmp_path / "mine.xyz", folder / "checkpoint", tmp_path / "tuned", **given)
    assert not (tmp_path / "tuned/data").exists()  # the same --output will do
    convert([tmp_path / "mine.xyz"], tmp_path / "shards")
    with pytest.raises(MsdeError, match=message):
        finetune(tmp_path / "shards", folder / "checkpoint", tmp_path / "tuned", **given)


@pytest.mark.parametrize(
    ("unit", "size"), [("Hartree", units.Hartree), ("J/mol", units.J / units.mol)]
)
def test_any_unit_of_energies_is_converted_for_ase(folder, tmp_path, unit, size):
    shutil.copytree(folder / "tuned/seed-0/model", tmp_path / "model")
    (tmp_path / "model/MANIFEST.json").unlink()
    path = tmp_path / "model/config.json"
    energies = []
    for name in ("eV", unit):
        path.write_text(path.read_text().replace("kcal/mol", "eV").replace('"eV"', f'"{name}"'))
        atoms = Atoms("C2H6O", 3 * np.arange(27).reshape(-1, 3))
        atoms.calc = MSDECalculator(tmp_path / "model")
        energies.append(atoms.get_potential_energy())
    assert energies[1] == pytest.approx(size * energies[0], rel=1e-6)


def test_a_unit_that_is_none_of_energies_is_refused(folder, tmp_path):
    write_extxyz(tmp_path / "mine.xyz", folder, 1.0)
    with pytest.raises(MsdeError, match="the unit of energy is 'D', expected one of energies"):
        finetune(
            tmp_path / "mine.xyz", folder / "checkpoint", tmp_path / "tuned", targets=["energy"],
            metric="force_mae", options=Options(label_columns=("energy=D",)),
        )  # fmt: skip


def test_a_unit_that_was_assumed_is_the_last_that_is_said(folder, tmp_path, caplog):
    write_extxyz(tmp_path / "mine.xyz", folder, 1.0)
    given = (tmp_path / "mine.xyz", folder / "checkpoint", tmp_path / "tuned", "epochs=1")
    with caplog.at_level(logging.INFO, "msde"):
        finetune(*given, task="md17-ethanol", targets=None)
    said = (
        "the unit of energy is not stated: kcal/mol is taken; if it is another one, give "
        "--label-columns energy=eV and another --output"
    )
    records = [record for record in caplog.records if record.getMessage() == said]
    assert len(records) == 2 and records[-1] is caplog.records[-1]
    assert all(record.levelno == logging.WARNING for record in records)


@pytest.mark.parametrize(
    ("formula", "told"),
    [("C6H6", ["C6H6", "C2H6O"]), ("CH3Cl", ["Cl", "CH3Cl"]), ("C2H5OH", [])],
)
def test_another_molecule_than_in_training_is_told_once(folder, formula, told, caplog):
    atoms = Atoms(formula)
    atoms.positions = 3 * np.arange(3 * len(atoms)).reshape(-1, 3)
    atoms.calc = MSDECalculator(folder / "tuned")
    atoms.get_potential_energy()
    atoms.rattle(0.01, seed=1)
    atoms.get_potential_energy()
    assert len(caplog.messages) == bool(told)
    assert all(part in caplog.text for part in told)


def test_of_a_model_without_facts_of_its_training_nothing_is_told(folder, tmp_path, caplog):
    """As earlier releases wrote them."""
    shutil.copytree(folder / "tuned/seed-0/model", tmp_path / "model")
    (tmp_path / "model/MANIFEST.json").unlink()
    path = tmp_path / "model/config.json"
    values = json.loads(path.read_text())
    for name in ("elements", "composition"):
        values["facts"].pop(name)
    path.write_text(json.dumps(values))
    atoms = Atoms("C6H6", 3 * np.arange(36).reshape(-1, 3))
    atoms.calc = MSDECalculator(tmp_path / "model")
    assert np.isfinite(atoms.get_potential_energy()) and not caplog.messages
