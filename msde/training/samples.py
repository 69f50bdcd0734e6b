"""Conformers of a few held-out molecules, sampled while training, to be looked at."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from msde.chem.rebuild import mol_from_record
from msde.chem.vocabulary import MoleculeError
from msde.config import Config
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.evaluation.pictures import overlay
from msde.monitor.pictures import Cell, has_matplotlib
from msde.sampling.conformers import ConformerOptions, sample_batch
from msde.training.flat_parameters import model_of
from msde.training.plan import RunPlan

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger("msde")

MOLECULES = 5
OPTIONS = ConformerOptions(num=1, start="noise", steps=20)


class SampledConformers:
    """Samples the same held-out molecules from the same noise at every call."""

    def __init__(self, plan: RunPlan) -> None:
        """Choose molecules, evenly over those that are held out."""
        places = np.linspace(0, len(plan.validation) - 1, MOLECULES).round().astype(int)
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
            columns = columns_from_records(self._records)
            batch = MoleculeBatch.from_columns(columns).to(engine.device)
            numbers = torch.zeros_like(batch.atoms_per_graph)
            found = sample_batch(model_of(engine.module), batch, numbers, None, OPTIONS)
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
