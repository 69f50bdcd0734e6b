"""Predictions of a model in the units of the labels, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msde.data.batch import MoleculeBatch
from msde.downstream.heads import TaskModel
from msde.downstream.labels import Scaling, TaskData
from msde.downstream.metrics import mae, over_targets, per_target, unit_free
from msde.downstream.tasks import FORCE_MAE, Task
from msde.inference.inputs import batches


@dataclass(frozen=True)
class Outcome:
    """Predictions of some molecules, with their metrics."""

    predictions: np.ndarray  # (rows, targets) in the labels' units; of classes probabilities
    metrics: dict[str, float]
    per_target: list[float]  # the task's metric of each target, NaN where it is not defined


def chosen_by(
    task: Task, metrics: Mapping[str, float], per_target: Sequence[float | None]
) -> float:
    """Return what epochs and arms are chosen by, of the metrics of the validation part.

    Args:
        per_target: None or NaN where the metric is not defined.
    """
    return metrics[FORCE_MAE] if task.has_forces else unit_free(task.metric, per_target)


def evaluation_batches(
    data: TaskData, places: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, MoleculeBatch]]:
    """Yield the molecules at `places` in batches of similar size, with their rows in `places`."""
    columns = data.columns.take(places)
    for rows in batches(columns):
        yield rows, MoleculeBatch.from_columns(columns.take(rows)).to(device)


def to_units(task_metric: str, output: Tensor, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return predictions in the labels' units, or probabilities, (rows, targets) float64."""
    values = output.detach().double().cpu()
    if task_metric == "roc_auc":
        values = values.sigmoid()
    return values.numpy() * scale + mean


def measure(metric: str, y: np.ndarray, predictions: np.ndarray) -> Outcome:
    """Return predictions with the metric, over all targets and of each.

    Args:
        y: (rows, targets), NaN where missing.
        predictions: (rows, targets).
    """
    each = per_target(metric, y, predictions)
    return Outcome(predictions, {metric: float(over_targets(each))}, each)


def evaluate(
    task: Task,
    model: TaskModel,
    data: TaskData,
    places: np.ndarray,
    scaling: Scaling,
    features: Tensor | None = None,
) -> Outcome:
    """Predict the molecules at `places` and measure the predictions.

    Args:
        features: (num_molecules, width) of frozen encoders; None: the encoders are run.
    """
    model.eval()
    device = model.head.weight.device
    if task.has_forces:
        return _evaluate_forces(task, model, data, places, scaling)
    with torch.inference_mode():
        if features is not None:
            output = model.head(features[torch.from_numpy(places)])
        else:
            output = torch.zeros(len(places), len(data.targets), device=device)
            for rows, batch in evaluation_batches(data, places, device):
                output[torch.from_numpy(rows)] = model(batch)
    predictions = to_units(task.metric, output, scaling.mean, scaling.scale)
    return measure(task.metric, data.y[places], predictions)


def _evaluate_forces(
    task: Task, model: TaskModel, data: TaskData, places: np.ndarray, scaling: Scaling
) -> Outcome:
    """Measure energies and forces; epochs are chosen by the forces, as published."""
    device = model.head.weight.device
    energies = np.zeros((len(places), 1))
    error, count = 0.0, 0
    for rows, batch in evaluation_batches(data, places, device):
        energy, forces = model.energy_and_forces(batch)
        energies[rows] = to_units(task.metric, energy, scaling.mean, scaling.scale)
        known = torch.from_numpy(data.columns.take(places[rows]).forces.copy()).to(device)
        difference = forces.detach() * float(scaling.scale[0]) - known  # (num_atoms, 3)
        error += float(difference.abs().double().sum())
        count += difference.numel()
    value = mae(data.y[places, 0], energies[:, 0])
    return Outcome(energies, {FORCE_MAE: error / count, "energy_mae": value}, [value])
