"""Metrics of predictions, equal to scikit-learn's; missing labels are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def roc_auc(y: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve, NaN where there is one class only.

    It is the probability that a positive has the larger score, ties counted half (Mann and Whitney
    1947).

    Args:
        y: (rows,) 0, 1 or NaN.
        score: (rows,).
    """
    known = ~np.isnan(y)
    y, score = y[known], score[known]
    positives = int((y == 1).sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[place]  # (rows,) from 1, the mean of those that are equal
    return float((rank[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def rmse(y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the root of the mean squared error over known labels, NaN where there is none."""
    error = (prediction - y)[~np.isnan(y)]
    return float(np.sqrt(np.square(error).mean())) if len(error) else float("nan")


def mae(y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean absolute error over known labels, NaN where there is none."""
    error = (prediction - y)[~np.isnan(y)]
    return float(np.abs(error).mean()) if len(error) else float("nan")


METRICS = {"roc_auc": roc_auc, "rmse": rmse, "mae": mae}


def is_better(metric: str, value: float, best: float) -> bool:
    """Return whether a value of a metric is better than the best one so far, which may be NaN."""
    if np.isnan(best):
        return not np.isnan(value)
    return value > best if metric == "roc_auc" else value < best


def per_target(metric: str, y: np.ndarray, prediction: np.ndarray) -> list[float]:
    """Return the metric of each target, NaN where it is not defined.

    Args:
        y: (rows, targets), NaN where missing.
        prediction: (rows, targets).
    """
    return [METRICS[metric](y[:, t], prediction[:, t]) for t in range(y.shape[1])]


def unit_free(metric: str, values: Sequence[float | None]) -> float:
    """Return one number of the targets' metrics to choose by, NaN where none is defined.

    Of errors it is the geometric mean, which weighs targets alike whatever their units are; of
    ROC-AUC the mean.

    Args:
        values: of each target, None or NaN where the metric is not defined.
    """
    defined = np.array(values, np.float64)
    defined = defined[~np.isnan(defined)]
    if len(defined) < 2 or metric == "roc_auc":
        return float(defined.mean()) if len(defined) else float("nan")
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(defined).mean()))


def over_targets(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean of the metric over the targets that have it, NaN where none has."""
    found = np.array(per_target(metric, y, prediction))
    defined = found[~np.isnan(found)]
    return float(defined.mean()) if len(defined) else float("nan")
