"""Paired comparisons of two arms: bootstrap intervals of the log-ratio of their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from msde.downstream.metrics import over_targets

DRAWS = 4000  # so that p can be small after a correction for many designs
AT_ONCE = 10**7  # errors of molecules, for memory
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


def errors_of(metric: str, y: np.ndarray, prediction: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the mean error over targets: the metric itself or, of ROC-AUC, 1 - AUC.

    Args:
        y: (molecules, targets), NaN where missing; and so `prediction`.
        rows: (draws, any number) the molecules that are measured.

    Returns:
        (draws,), NaN where no target has what the metric needs.
    """
    if metric == "roc_auc":
        return np.array([_one_minus_auc(y[each], prediction[each]) for each in rows])
    known = ~np.isnan(y)
    difference = np.where(known, prediction - y, 0)
    losses = np.abs(difference) if metric == "mae" else np.square(difference)
    counts = known[rows].sum(1)  # (draws, targets)
    with np.errstate(invalid="ignore"):
        each = losses[rows].sum(1) / counts
        each = np.where(counts > 0, np.sqrt(each) if metric == "rmse" else each, 0)
        means = each.sum(1) / (counts > 0).sum(1)
    return np.maximum(means, 1e-9)


def error_of(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the error of all molecules, see `errors_of`."""
    return float(errors_of(metric, y, prediction, np.arange(len(y))[None])[0])


def _one_minus_auc(y: np.ndarray, prediction: np.ndarray) -> float:
    value = over_targets("roc_auc", y, prediction)
    positives, negatives = (int((y == label).sum()) for label in (1, 0))
    half_a_pair = 0.5 / max(1, positives * negatives)  # the logarithm of 0 is infinite
    return max(1 - value, half_a_pair)


def compare(metric: str, pairs: Sequence[Pair], seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two arms over splits and seeds.

    Splits, in each of them seeds, and test molecules are drawn again, with replacement, so that the
    interval holds the chance of all three. The seeds of a split share the molecules drawn.

    Raises:
        ValueError: the errors of no draw can be compared: no target has both classes.
    """
    rng = np.random.default_rng(seed)
    ratios = [_log_ratios(metric, pair, np.arange(len(pair.y))[None])[0] for pair in pairs]
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, []).append(pair)
    groups = list(by_split.values())
    # Splits are drawn before all else, so that designs with equal splits are drawn alike: `pool`.
    picked = rng.integers(len(groups), size=(draws, len(groups)))
    total, count = np.zeros(draws), np.zeros(draws)
    for number, members in enumerate(groups):
        draw = np.nonzero(picked == number)[0]
        molecules = len(members[0].y)
        for some in np.array_split(draw, 1 + len(draw) * members[0].y.size // AT_ONCE):
            rows = rng.integers(molecules, size=(len(some), molecules))
            each = np.stack([_log_ratios(metric, pair, rows) for pair in members])
            each = np.take_along_axis(each, rng.integers(len(members), size=each.shape), 0)
            np.add.at(total, some, np.nansum(each, 0))
            np.add.at(count, some, np.isfinite(each).sum(0))
    if not count.any():
        raise ValueError("no draw has a target with both classes")
    drawn = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Comparison(float(np.nanmean(ratios)), drawn, len(groups))


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the mean of several designs; those of the same splits do not count as independent."""
    drawn = np.mean([found.drawn for found in comparisons], 0)
    ratio = float(np.mean([found.log_ratio for found in comparisons]))
    return Comparison(ratio, drawn, min(found.splits for found in comparisons))


def _log_ratios(metric: str, pair: Pair, rows: np.ndarray) -> np.ndarray:
    one, other = (errors_of(metric, pair.y, p, rows) for p in (pair.one, pair.other))
    return np.log(one / other)


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
