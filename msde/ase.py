"""Fine-tuned force models as calculators of the Atomic Simulation Environment."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.symbols import Symbols

from msde.chem.record import record_of_atoms
from msde.chem.units import factor
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.downstream.prediction import FineTuned
from msde.errors import MsdeError

log = logging.getLogger("msde")


class MSDECalculator(Calculator):
    """Energies in eV and forces in eV/A of one molecule, without periodic boundaries.

    Energies are those of the labels, with the training mean that was taken off added again. Of
    several models the mean is given, which is the gradient of the mean energy.

    Args:
        folder: `--output` of a fine-tuning with forces, or the folder of one of its models.

    Raises:
        MsdeError: the folder holds no model with forces, or energies in a unit that is not known.
    """

    implemented_properties: list[str] = ["energy", "forces"]

    def __init__(self, folder: Path | str, **parameters: Any) -> None:
        """Load the models; `parameters` are those of ASE's base class."""
        super().__init__(**parameters)
        if folder is None:
            raise MsdeError(
                "folder is None, expected --output of a fine-tuning with forces; the weights that "
                "come with msde predict none"
            )
        self._folder = Path(folder)
        self._tuned = FineTuned.load(self._folder)
        facts = self._tuned.facts
        if facts.forces_unit is None:
            raise MsdeError(
                f"{folder} predicts no forces; fine-tune on a task md17-NAME, or with "
                "--task custom --metric force_mae"
            )
        unit = factor(facts.units[0], "eV")
        if unit is None:
            raise MsdeError(
                f"{folder} predicts energies in {facts.units[0]!r}, expected a unit of energies"
            )
        self._unit = unit
        # Rounding of float32 would heat a long simulation.
        self._models = [model.double() for model in self._tuned.models]
        self._numbers: tuple[int, ...] = ()
        self._told: set[tuple[int, ...]] = set()  # compositions

    def calculate(
        self,
        atoms: Any = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute energy and forces of `atoms`, an ase.Atoms.

        Raises:
            MsdeError: the atoms are in a periodic cell, there is none, one is no element, or a
                position is not finite.
        """
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise MsdeError("the model knows no periodic boundaries; set atoms.pbc = False")
        elements, positions = self.atoms.numbers, self.atoms.positions
        if not len(elements) or not 1 <= elements.min() <= elements.max() <= 118:
            raise MsdeError(f"found {self.atoms.symbols or 'no atoms'}, expected elements 1 to 118")
        if not np.isfinite(positions).all():
            raise MsdeError("positions are not finite; a smaller time step may keep them so")
        numbers = tuple(self.atoms.numbers.tolist())
        if numbers != self._numbers:
            self._batch = _batch(numbers, self._models[0].head.weight.device)
            self._numbers = numbers
            self._warn_of_another_molecule()
        pos = torch.from_numpy(self.atoms.positions).to(self._batch.pos)  # (num_atoms, 3) A
        batch = dataclasses.replace(self._batch, pos=pos)
        energies, forces = [], []
        for model in self._models:
            energy, force = model.energy_and_forces(batch)
            mean, scale = model.facts.mean[0], model.facts.scale[0]
            energies.append(float(energy.detach()) * scale + mean)
            forces.append(force.detach().cpu().numpy() * scale)
        self.results = {
            "energy": float(np.mean(energies)) * self._unit,
            "forces": np.mean(forces, axis=0) * self._unit,  # (num_atoms, 3) eV/A
        }

    def _warn_of_another_molecule(self) -> None:
        """Say once of a composition or of elements that training did not have."""
        facts, here = self._tuned.facts, tuple(sorted(self._numbers))
        is_other = here != facts.composition if facts.composition else set(here) - {*facts.elements}
        if not facts.elements or not is_other or here in self._told:
            return
        self._told.add(here)
        trained = "molecules of " + ", ".join(chemical_symbols[z] for z in facts.elements)
        if facts.composition:
            trained = _formula(facts.composition)
        text = "%s was trained on %s; its energies and forces of %s are guesses"
        log.warning(text, self._folder, trained, _formula(here))


def _formula(numbers: tuple[int, ...]) -> str:
    return Symbols(np.array(numbers)).get_chemical_formula()


def _batch(numbers: tuple[int, ...], device: torch.device) -> MoleculeBatch:
    """Return a batch of one molecule without bonds, of which a 3D encoder sees the elements."""
    record = record_of_atoms(np.array(numbers), np.zeros((len(numbers), 3)), uid=0)
    batch = MoleculeBatch.from_columns(columns_from_records([record])).to(device)
    return dataclasses.replace(batch, pos=batch.pos.double())
