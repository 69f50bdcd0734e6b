"""Metrics of predictions, equal to scikit-learn's; missing labels are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def roc_auc(y: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve, NaN where there is one class only.

    It is the probability that a positive has the larger score, ties counted half (Mann and Whitney
    1947).

    Args:
        y: (rows,) 0, 1 or NaN.
        score: (rows,).
    """
    from scipy.stats import rankdata  # takes a second

    known = ~np.isnan(y)
    y, score = y[known], score[known]
    positives = int((y == 1).sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        return float("nan")
    rank = rankdata(score)  # (rows,) from 1, the mean of those that are equal
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


def over_targets(values: ArrayLike, geometric: bool = False) -> np.ndarray:
    """Return the mean of metrics over the targets that have them, NaN where none has.

    Args:
        values: (..., targets), NaN or None where not defined.
        geometric: it is the geometric mean, of errors; they may be 0.

    Returns:
        (...).
    """
    each = np.asarray(values, np.float64)
    if geometric:
        each = np.log(np.maximum(each, np.finfo(np.float64).tiny))
    there = ~np.isnan(each)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(there, each, 0).sum(-1) / there.sum(-1)
    return np.exp(mean) if geometric else mean


def unit_free(metric: str, values: Sequence[float | None]) -> float:
    """Return one number of the targets' metrics to choose by, NaN where none is defined.

    Of errors it is the geometric mean, which weighs targets alike whatever their units are; of
    ROC-AUC the mean.

    Args:
        values: of each target, None or NaN where the metric is not defined.
    """
    each = np.asarray(values, np.float64)
    several = bool(np.count_nonzero(~np.isnan(each)) > 1)  # of one the arithmetic mean is exact
    return float(over_targets(each, geometric=several and metric != "roc_auc"))
