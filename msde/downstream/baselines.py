"""Forests and ridge regression on fixed features, to compare fine-tuned models with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from msde.chem.parsing import silence_rdkit
from msde.downstream.labels import TaskData
from msde.downstream.metrics import METRICS, is_better
from msde.downstream.splits import Split
from msde.downstream.tasks import Task

TREES = 500
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of ridge regression
LARGEST = 1e30  # of a descriptor; forests take float32


def ecfp_counts(mols: list[Chem.Mol]) -> np.ndarray:
    """Return how often each circular environment of radius 2 occurs, hashed to (rows, 2048).

    Source: Rogers and Hahn 2010; counts beat bits in Praski 2025.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetCountFingerprintAsNumPy(mol) for mol in mols]).astype(np.float32)


def descriptors(mols: list[Chem.Mol]) -> np.ndarray:
    """Return RDKit's descriptors, (rows, about 217); what is not finite is 0."""
    rows = [list(Descriptors.CalcMolDescriptors(mol, missingVal=0.0).values()) for mol in mols]
    values = np.nan_to_num(np.array(rows, np.float64), nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


FINGERPRINTS: dict[str, Callable[[list[Chem.Mol]], np.ndarray]] = {
    "ecfp": ecfp_counts,
    "descriptors": descriptors,
}


def features_of(data: TaskData, name: str) -> np.ndarray:
    """Return FINGERPRINTS of all molecules, (num_molecules, width); zeros where RDKit fails."""
    silence_rdkit()
    empty = Chem.MolFromSmiles("")
    return FINGERPRINTS[name]([mol or empty for mol in data.mols()])


def _only_class(y: np.ndarray) -> float:
    """Return the probability of class 1 where training has one class only, or no label."""
    return float(y[0]) if len(y) else 0.5


def fit_forest(
    task: Task, data: TaskData, features: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """Fit one forest a target on its known labels; predict all molecules, (rows, targets)."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    predictions = np.zeros(data.y.shape)
    for target in range(data.y.shape[1]):
        y = data.y[:, target]
        known = split.train[~np.isnan(y[split.train])]
        if task.is_classification and len(np.unique(y[known])) < 2:
            predictions[:, target] = _only_class(y[known])
        elif task.is_classification:
            forest = RandomForestClassifier(TREES, random_state=seed).fit(features[known], y[known])
            predictions[:, target] = forest.predict_proba(features)[:, 1]
        else:
            forest = RandomForestRegressor(TREES, random_state=seed, max_features=0.33)
            predictions[:, target] = forest.fit(features[known], y[known]).predict(features)
    return predictions


def fit_ridge(
    task: Task, data: TaskData, features: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """Fit ridge regression, of classes logistic; predict all molecules, (rows, targets).

    Features are standardised by the training part. Of PENALTIES the one is taken that validates
    best, for each target. Nothing depends on the seed.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    mean, std = features[split.train].mean(0), features[split.train].std(0)
    scaled = (features - mean) / np.where(std > 0, std, 1)
    predictions = np.zeros(data.y.shape)
    for target in range(data.y.shape[1]):
        y, best = data.y[:, target], float("nan")
        known = split.train[~np.isnan(y[split.train])]
        if task.is_classification and len(np.unique(y[known])) < 2:
            predictions[:, target] = _only_class(y[known])
            continue
        for penalty in PENALTIES:
            if task.is_classification:
                model = LogisticRegression(C=1 / penalty, max_iter=1000)
                found = model.fit(scaled[known], y[known]).predict_proba(scaled)[:, 1]
            else:
                found = Ridge(penalty).fit(scaled[known], y[known]).predict(scaled)
            value = METRICS[task.metric](y[split.valid], found[split.valid])
            if is_better(task.metric, value, best) or penalty == PENALTIES[0]:
                best, predictions[:, target] = value, found
    return predictions


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {"forest": fit_forest, "ridge": fit_ridge}
