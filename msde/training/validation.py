"""Held-out molecules: the losses on them, and conformers of a few, to be looked at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from msde.chem.rebuild import mol_from_record
from msde.chem.vocabulary import MoleculeError
from msde.config import Config, LossConfig
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.evaluation.pictures import overlay
from msde.monitor.pictures import Cell, has_matplotlib
from msde.philox import Key
from msde.sampling.conformers import ConformerOptions, sample_batch
from msde.training.flat_parameters import model_of
from msde.training.memory import explain_out_of_memory
from msde.training.metrics import TermSums
from msde.training.plan import RunPlan

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger("msde")

SAMPLED_MOLECULES = 5
SAMPLING = ConformerOptions(num=1, start="noise", steps=20)
# Every validation draws the same noise and times, whatever the run's seed and step.
VALIDATION_KEY = Key(seed=0, epoch=2**32 - 1)


class Validator:
    """Validates on fixed slots, with fixed noise and times, and with running statistics."""

    def __init__(self, plan: RunPlan, loss: LossConfig, rank: int, world_size: int) -> None:
        """Deal the held-out slots to the ranks; `loss` is the run's."""
        self._loss = loss
        count = max(1, round(len(plan.validation) / plan.molecules_per_slot))
        slots = np.array_split(plan.validation, count)
        # All ranks make the same number of forward passes; ZeRO-3 would hang otherwise.
        numbers = range(rank, -(-count // world_size) * world_size, world_size)
        self._count, self.num_molecules = count, len(plan.validation)
        self._slots = {n: plan.stream.data.fetch(slots[n % count]) for n in numbers}

    @torch.no_grad()
    def __call__(
        self, engine: DeepSpeedEngine, go_on: Callable[[], bool]
    ) -> tuple[dict[str, float], int] | None:
        """Return named means of the terms, and how many molecules have some that is not finite.

        Every rank must call it. It is None if it was stopped.

        Args:
            go_on: called before every slot, by all ranks together; False stops the validation.
        """
        sums = TermSums(engine.device, self._loss)
        engine.eval()
        try:
            for number, columns in self._slots.items():
                if not go_on():
                    return None
                with explain_out_of_memory(f"held-out slot {number} of {self._count}"):
                    batch = MoleculeBatch.from_columns(columns, VALIDATION_KEY, slot=number)
                    batch = batch.to(engine.device)
                    _, terms = engine(batch)
                    if number < self._count:
                        sums.add(terms, batch)
        finally:
            engine.train()
        means, molecules, _ = sums.read("validation/")
        return means, self.num_molecules - molecules


class SampledConformers:
    """Samples the same held-out molecules from the same noise at every call."""

    def __init__(self, plan: RunPlan) -> None:
        """Choose molecules, evenly over those that are held out."""
        places = np.linspace(0, len(plan.validation) - 1, SAMPLED_MOLECULES).round().astype(int)
        columns = plan.stream.data.fetch(plan.validation[np.unique(places)])
        self._records, self._mols = [], []
        for record in map(columns.record, range(len(columns))):
            try:
                mol = mol_from_record(record)
            except MoleculeError:
                continue  # RDKit cannot draw it
            self._records.append(record)
            self._mols.append(mol)

    def __call__(self, engine: DeepSpeedEngine) -> list[Cell]:
        """Return samples over their references; every rank must call it."""
        if not self._records:
            return []
        engine.eval()
        try:
            with explain_out_of_memory("samples of held-out molecules"):
                columns = columns_from_records(self._records)
                batch = MoleculeBatch.from_columns(columns).to(engine.device)
                numbers = torch.zeros_like(batch.atoms_per_graph)
                found = sample_batch(model_of(engine.module), batch, numbers, None, SAMPLING)
        finally:
            engine.train()
        if not all(np.isfinite(pos).all() for pos in found):
            log.warning("samples of held-out molecules are not finite: none is shown")
            return []
        return list(map(overlay, self._mols, found))


def sampled_conformers(config: Config, plan: RunPlan) -> SampledConformers | None:
    """Return what samples while training, or None where there is nothing to sample."""
    if not len(plan.validation) or not config.loss.coefficient_2d_to_3d:
        return None
    if not has_matplotlib():
        log.info("TensorBoard gets meshes but no pictures of conformers: pip install 'msde[plot]'")
    return SampledConformers(plan)
