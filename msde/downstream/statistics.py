"""Paired comparisons of two arms: bootstrap intervals of the log-ratio of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from msde.downstream.metrics import over_targets

DRAWS = 4000  # so that p can be small after a correction for many designs
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
        """`equal` if the interval is within +-1 %, else `better` or `worse` if it excludes zero."""
        if self.low > -EQUIVALENCE and self.high < EQUIVALENCE:
            return "equal"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "open"


def error_of(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean error over targets: the metric itself or, of ROC-AUC, 1 - AUC."""
    value = over_targets(metric, y, prediction)
    if metric == "roc_auc":
        positives, negatives = (int((y == label).sum()) for label in (1, 0))
        half_a_pair = 0.5 / max(1, positives * negatives)  # the logarithm of 0 is infinite
        return max(1 - value, half_a_pair)
    return max(value, 1e-9)


def compare(metric: str, pairs: Sequence[Pair], seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two arms over splits and seeds.

    Splits, in each of them seeds, and test molecules are drawn again, with replacement, so that the
    interval holds the chance of all three. The seeds of a split share the molecules drawn.

    Raises:
        ValueError: the errors of no draw can be compared: no target has both classes.
    """
    rng = np.random.default_rng(seed)
    ratios = [_log_ratio(metric, pair, np.arange(len(pair.y))) for pair in pairs]
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, []).append(pair)
    groups, drawn = list(by_split.values()), []
    for _ in range(draws):
        each: list[float] = []
        for group in rng.integers(len(groups), size=len(groups)):
            members = groups[group]
            rows = rng.integers(len(members[0].y), size=len(members[0].y))
            chosen = rng.integers(len(members), size=len(members))
            each += [_log_ratio(metric, members[i], rows) for i in chosen]
        if np.isfinite(each).any():
            drawn.append(float(np.nanmean(each)))
    if not drawn:
        raise ValueError("no draw has a target with both classes")
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
