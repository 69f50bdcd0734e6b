"""Predictions of fine-tuned models on new molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msde.data.batch import MoleculeBatch
from msde.data.shards import ShardDataset
from msde.downstream.evaluation import to_units
from msde.downstream.heads import ModelFacts, TaskModel, load_model, model_folders
from msde.downstream.labels import has_hydrogens
from msde.errors import MsdeError
from msde.inference.inputs import Chunk, batches, open_input

NO_GEOMETRY = "no 3D view"


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of the input, in the units of the labels, or probabilities."""

    values: np.ndarray  # (models, num_molecules, targets), NaN where there is a reason
    reasons: dict[int, str]  # of molecules without a prediction
    notes: dict[int, str]

    @property
    def mean(self) -> np.ndarray:
        """The mean over the models, (num_molecules, targets)."""
        return self.values.mean(0)

    @property
    def std(self) -> np.ndarray:
        """The sample deviation over the models, (num_molecules, targets), NaN for one model."""
        if len(self.values) < 2:
            return np.full_like(self.mean, np.nan)
        return self.values.std(0, ddof=1)


class FineTuned:
    """The models of a fine-tuning, one a seed."""

    def __init__(self, models: Sequence[TaskModel]) -> None:
        """Keep models that predict the same targets from the same views."""
        self.models = list(models)

    @classmethod
    def load(cls, output: Path) -> FineTuned:
        """Load the models in the folder of a fine-tuning.

        Raises:
            MsdeError: there is none.
            DataDamaged: a file is not as it was written.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        models = [load_model(folder).to(device) for folder in model_folders(output)]
        facts = {(m.facts.targets, m.facts.views, m.facts.hydrogens) for m in models}
        if len(facts) > 1:
            raise MsdeError(f"the models in {output} predict different targets or see other views")
        return cls(models)

    @property
    def facts(self) -> ModelFacts:
        """What the models predict and need."""
        return self.models[0].facts

    def predict(self, molecules: Sequence[Any] | Path) -> Predictions:
        """Predict molecules.

        Args:
            molecules: SMILES strings, RDKit Mols and reasons of a reader, or a folder of shards.

        Raises:
            MsdeError: hydrogens are atoms in the shards and were none in training, or the reverse.
        """
        if isinstance(molecules, Path):
            self._check_hydrogens(molecules)
        views = list(self.facts.views)
        source = open_input(molecules, views, self.facts.hydrogens)
        shape = (len(self.models), len(source), len(self.facts.targets))
        found = Predictions(np.full(shape, np.nan), {}, {})
        for chunk in source.chunks():
            found.reasons.update(chunk.reasons)
            found.notes.update(chunk.notes)
            self._fill(found.values[:, chunk.first : chunk.first + chunk.size], chunk)
            for number in (chunk.first + place for place in chunk.flat):
                found.reasons.setdefault(number, found.notes.pop(number, NO_GEOMETRY))
                found.values[:, number] = np.nan
        return found

    def _check_hydrogens(self, root: Path) -> None:
        found = has_hydrogens(ShardDataset(root))
        if found != self.facts.hydrogens:
            there, needed = ("are", "without") if found else ("are not", "with")
            raise MsdeError(
                f"hydrogens {there} atoms in {root}; the model was trained {needed} them: convert "
                "the molecules alike, or give their file"
            )

    def _fill(self, values: np.ndarray, chunk: Chunk) -> None:
        """Write the predictions of a chunk, (models, molecules of the chunk, targets)."""
        if chunk.columns is None:
            return
        at = np.array(chunk.places)
        for places in batches(chunk.columns):
            batch = MoleculeBatch.from_columns(chunk.columns.take(places))
            batch = batch.to(self.models[0].head.weight.device)
            for number, model in enumerate(self.models):
                facts = model.facts
                with torch.inference_mode():
                    output = model(batch)
                scaling = np.array(facts.mean), np.array(facts.scale)
                values[number, at[places]] = to_units(facts.metric, output, *scaling)
