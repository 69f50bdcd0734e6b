"""Paired comparisons of two arms: bootstrap intervals of the log-ratio of their errors."""

from __future__ import annotations

import math
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
    """The mean log-ratio of errors, below 0 where the first arm is better.

    Interval and p are Student's with the deviation of the bootstrap and a degree of freedom for
    each split but one: quantiles of the bootstrap itself are too narrow with few splits (of five
    normal numbers they hold the mean in 83 %, not in 95 %).
    """

    log_ratio: float
    drawn: np.ndarray  # (draws,) of the bootstrap
    splits: int

    @property
    def _deviation(self) -> float:
        few = self.splits / (self.splits - 1) if self.splits > 1 else 1.0
        return float(np.nanstd(self.drawn)) * math.sqrt(few)

    @property
    def _student(self) -> scipy.stats.rv_continuous:
        return scipy.stats.t(self.splits - 1 if self.splits > 1 else np.inf)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.log_ratio - self._student.ppf(0.975) * self._deviation

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.log_ratio + self._student.ppf(0.975) * self._deviation

    @property
    def p(self) -> float:
        """Two-sided probability of such a log-ratio between equal arms."""
        if not self._deviation:
            return float(self.log_ratio == 0)
        return float(2 * self._student.sf(abs(self.log_ratio) / self._deviation))

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
    groups, drawn = list(by_split.values()), np.full(draws, np.nan)
    # Splits are drawn before all else, so that designs with equal splits are drawn alike: `pool`.
    for draw, picked in enumerate(rng.integers(len(groups), size=(draws, len(groups)))):
        each: list[float] = []
        for group in picked:
            members = groups[group]
            rows = rng.integers(len(members[0].y), size=len(members[0].y))
            chosen = rng.integers(len(members), size=len(members))
            each += [_log_ratio(metric, members[i], rows) for i in chosen]
        if np.isfinite(each).any():
            drawn[draw] = np.nanmean(each)
    if np.isnan(drawn).all():
        raise ValueError("no draw has a target with both classes")
    return Comparison(float(np.nanmean(ratios)), drawn, len(groups))


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the mean of several designs; those of the same splits do not count as independent."""
    drawn = np.mean([found.drawn for found in comparisons], 0)
    ratio = float(np.mean([found.log_ratio for found in comparisons]))
    return Comparison(ratio, drawn, min(found.splits for found in comparisons))


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
