"""Random forests on counted ECFP or on RDKit's descriptors, to compare fine-tuned models with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from msde.chem.parsing import silence_rdkit
from msde.downstream.labels import TaskData
from msde.downstream.tasks import Task

TREES = 500
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


BASELINES: dict[str, Callable[[list[Chem.Mol]], np.ndarray]] = {
    "ecfp + forest": ecfp_counts,
    "descriptors + forest": descriptors,
}


def features_of(data: TaskData, arm: str) -> np.ndarray:
    """Return the features of all molecules, (num_molecules, width); zeros where RDKit fails."""
    silence_rdkit()
    empty = Chem.MolFromSmiles("")
    return BASELINES[arm]([mol or empty for mol in data.mols()])


def fit_forest(
    task: Task, data: TaskData, features: np.ndarray, train: np.ndarray, seed: int
) -> np.ndarray:
    """Fit one forest a target on its known labels; predict all molecules, (rows, targets)."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    predictions = np.zeros(data.y.shape)
    for target in range(data.y.shape[1]):
        y = data.y[:, target]
        known = train[~np.isnan(y[train])]
        if task.is_classification:
            forest = RandomForestClassifier(TREES, random_state=seed).fit(features[known], y[known])
            shares = forest.predict_proba(features)  # (rows, classes that training holds)
            predictions[:, target] = shares @ forest.classes_
        else:
            forest = RandomForestRegressor(TREES, random_state=seed, max_features=0.33)
            predictions[:, target] = forest.fit(features[known], y[known]).predict(features)
    return predictions
