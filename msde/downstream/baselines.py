"""Forests, ridge regression and nearest neighbours, to compare fine-tuned models with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from msde.chem.parsing import silence_rdkit
from msde.downstream.features import remembered
from msde.downstream.labels import TaskData
from msde.downstream.metrics import METRICS, is_better
from msde.downstream.splits import Split
from msde.downstream.tasks import Task

TREES = 500
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of ridge regression
NEIGHBOURS = (1, 3, 5, 10, 20)
LARGEST = 1e30  # of a descriptor; forests take float32


def ecfp_counts(mols: Iterable[Chem.Mol]) -> np.ndarray:
    """Return how often each circular environment of radius 2 occurs, hashed to (rows, 2048).

    Source: Rogers and Hahn 2010; counts beat bits in Praski 2025.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetCountFingerprintAsNumPy(mol) for mol in mols]).astype(np.float32)


def descriptors(mols: Iterable[Chem.Mol]) -> np.ndarray:
    """Return RDKit's descriptors, (rows, about 217); what is not finite is 0."""
    rows = [list(Descriptors.CalcMolDescriptors(mol, missingVal=0.0).values()) for mol in mols]
    values = np.nan_to_num(np.array(rows, np.float64), nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


FINGERPRINTS: dict[str, Callable[[Iterable[Chem.Mol]], np.ndarray]] = {
    "ecfp": ecfp_counts,
    "descriptors": descriptors,
}


def features_of(data: TaskData, name: str) -> np.ndarray:
    """Return FINGERPRINTS of all molecules, (num_molecules, width); zeros where RDKit fails."""
    silence_rdkit()
    empty = Chem.MolFromSmiles("")
    make = FINGERPRINTS[name]
    return remembered(name.encode(), data, lambda: make(mol or empty for mol in data.mols()))


def _fit_each(
    task: Task,
    data: TaskData,
    split: Split,
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Predict each target by what is fitted to its known training labels, (rows, targets).

    Of classes it is the probability of class 1, a constant where training has one class or no
    label.

    Args:
        fit: returns the predictions of all molecules, (rows,), given the labels of the target
            (rows,) and the places of the training molecules that have one.
    """
    predictions = np.zeros(data.y.shape)
    for target, y in enumerate(data.y.T):
        known = split.train[~np.isnan(y[split.train])]
        if task.is_classification and len(np.unique(y[known])) < 2:
            predictions[:, target] = y[known[0]] if len(known) else 0.5
        else:
            predictions[:, target] = fit(y, known)
    return predictions


def _predicted(task: Task, model: Any, features: np.ndarray) -> np.ndarray:
    """Return what a model of scikit-learn predicts, of classes the probability of 1, (rows,)."""
    return (
        model.predict_proba(features)[:, 1] if task.is_classification else model.predict(features)
    )


def fit_forest(
    task: Task, data: TaskData, features: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """Fit one forest a target on its known labels; predict all molecules, (rows, targets)."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    def fit(y: np.ndarray, known: np.ndarray) -> np.ndarray:
        if task.is_classification:
            forest = RandomForestClassifier(TREES, random_state=seed)
        else:
            forest = RandomForestRegressor(TREES, random_state=seed, max_features=0.33)
        return _predicted(task, forest.fit(features[known], y[known]), features)

    return _fit_each(task, data, split, fit)


def _scaled(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return features standardised by the training part, within the range that they have there.

    Without bounds a feature that hardly varies in training decides the predictions of molecules
    with another scaffold: their errors were tens of kcal/mol.
    """
    mean, std = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(std > 0, std, 1)
    return np.clip(scaled, scaled[train].min(0), scaled[train].max(0))


def _fit_chosen(
    task: Task,
    data: TaskData,
    features: np.ndarray,
    split: Split,
    make_models: Callable[[int], list[Any]],
) -> np.ndarray:
    """Fit models a target and keep the one that validates best; predict all, (rows, targets).

    Args:
        make_models: returns what is tried, given the number of known training labels.
    """
    scaled = _scaled(features, split.train)

    def fit(y: np.ndarray, known: np.ndarray) -> np.ndarray:
        chosen, best = np.zeros(len(y)), math.nan
        for number, model in enumerate(make_models(len(known))):
            found = _predicted(task, model.fit(scaled[known], y[known]), scaled)
            value = METRICS[task.metric](y[split.valid], found[split.valid])
            if number == 0 or is_better(task.metric, value, best):
                chosen, best = found, value
        return chosen

    return _fit_each(task, data, split, fit)


def fit_ridge(
    task: Task, data: TaskData, features: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """Fit ridge regression, of classes logistic, with the one of PENALTIES that validates best.

    Returns:
        Predictions of all molecules, (rows, targets). Nothing depends on the seed.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    def models(_: int) -> list[Any]:
        if task.is_classification:
            return [LogisticRegression(C=1 / penalty, max_iter=1000) for penalty in PENALTIES]
        return [Ridge(penalty) for penalty in PENALTIES]

    return _fit_chosen(task, data, features, split, models)


def fit_knn(
    task: Task, data: TaskData, features: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """Predict by the nearest training molecules, as many of NEIGHBOURS as validate best.

    Returns:
        Predictions of all molecules, (rows, targets). Nothing depends on the seed.
    """
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsClassifier if task.is_classification else KNeighborsRegressor

    def models(known: int) -> list[Any]:
        return [kind(number, weights="distance") for number in NEIGHBOURS if number <= known]

    return _fit_chosen(task, data, features, split, models)


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {
    "forest": fit_forest,
    "ridge": fit_ridge,
    "knn": fit_knn,
}
