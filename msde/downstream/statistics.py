"""Paired comparisons of two arms: bootstrap intervals of the log-ratio of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from msde.downstream.metrics import over_targets

DRAWS = 1000
EQUIVALENCE = 0.01  # log-ratios within +-1 % are practically equal


@dataclass(frozen=True)
class Pair:
    """Test predictions of two arms with the same split and seed."""

    split: str
    y: np.ndarray  # (rows, targets), NaN where missing
    one: np.ndarray  # (rows, targets) predictions
    other: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """The mean log-ratio of errors, below 0 where the first arm is better."""

    log_ratio: float
    low: float  # of the 95 % interval
    high: float
    p: float  # two-sided, of the bootstrap

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval is clear of zero, `equal` within +-1 %."""
        if self.low > -EQUIVALENCE and self.high < EQUIVALENCE:
            return "equal"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "open"


def error_of(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean error over targets: the metric itself or, of ROC-AUC, 1 - AUC."""
    value = over_targets(metric, y, prediction)
    return max(1 - value if metric == "roc_auc" else value, 1e-9)


def compare(metric: str, pairs: Sequence[Pair], seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two arms over seeds and splits.

    Pairs and, in each split, test molecules are drawn again together, with replacement, so that the
    interval holds the chance of both.
    """
    rng = np.random.default_rng(seed)
    ratios = [_log_ratio(metric, pair, np.arange(len(pair.y))) for pair in pairs]
    sizes = {pair.split: len(pair.y) for pair in pairs}
    drawn = []
    for _ in range(draws):
        rows = {split: rng.integers(size, size=size) for split, size in sizes.items()}
        chosen = rng.integers(len(pairs), size=len(pairs))
        each = np.array([_log_ratio(metric, pairs[i], rows[pairs[i].split]) for i in chosen])
        if np.isfinite(each).any():  # else no target has both classes
            drawn.append(float(np.nanmean(each)))
    found = np.array(drawn)
    low, high = np.quantile(found, [0.025, 0.975])
    # One is added so that no probability is zero (Phipson and Smyth 2010).
    below = (1 + (found >= 0).sum()) / (1 + len(found))
    above = (1 + (found <= 0).sum()) / (1 + len(found))
    return Comparison(
        float(np.nanmean(ratios)), float(low), float(high), min(1, 2 * min(below, above))
    )


def _log_ratio(metric: str, pair: Pair, rows: np.ndarray) -> float:
    y = pair.y[rows]
    one, other = (error_of(metric, y, p[rows]) for p in (pair.one, pair.other))
    return float(np.log(one / other))


def wilcoxon(log_ratios: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test that their median is 0."""
    values = np.array(log_ratios)
    return float(scipy.stats.wilcoxon(values).pvalue) if values.any() else 1.0


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return probabilities corrected for several tests (Holm 1979)."""
    order = np.argsort(probabilities)
    corrected, largest = np.zeros(len(order)), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * probabilities[number]))
        corrected[number] = largest
    return corrected.tolist()
