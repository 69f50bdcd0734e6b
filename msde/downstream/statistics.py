"""Paired comparisons of two arms: bootstrap intervals of the log-ratio of their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

DRAWS = 4000  # so that p can be small after a correction for many designs
AT_ONCE = 4 * 10**6  # counts of molecules, for memory
TINY = 1e-9  # below this a deviation is rounding
EQUIVALENCE = 0.01  # log-ratios within +-1 % are practically equal


@dataclass(frozen=True)
class Pair:
    """Test predictions of two arms with the same split and seed."""

    split: str
    uids: Sequence[str]  # (rows,) of the test molecules
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
        """That of the log-ratio; infinite where nothing can be drawn, as of one error of forces."""
        few = self.splits / (self.splits - 1) if self.splits > 1 else 1.0
        found = float(np.nanstd(self.drawn)) * math.sqrt(few)
        return math.inf if found < TINY < abs(self.log_ratio) else found

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


def errors_of(metric: str, y: np.ndarray, prediction: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean error over targets: the metric itself or, of ROC-AUC, 1 - AUC.

    Args:
        y: (molecules, targets), NaN where missing; and so `prediction`.
        counts: (draws, molecules) how often each molecule is measured.

    Returns:
        (draws,), NaN where no target has what the metric needs.
    """
    known = ~np.isnan(y)
    if metric == "roc_auc":
        targets = zip(y.T, prediction.T, known.T, strict=True)
        each = np.stack([_one_minus_auc(a[k], b[k], counts[:, k]) for a, b, k in targets], 1)
    else:
        difference = np.where(known, prediction - y, 0)
        losses = np.abs(difference) if metric == "mae" else np.square(difference)
        with np.errstate(invalid="ignore"):
            each = counts @ losses / (counts @ known.astype(counts.dtype))  # (draws, targets)
        each = np.maximum(np.sqrt(each) if metric == "rmse" else each, 1e-9)
    there = np.isfinite(each)
    with np.errstate(invalid="ignore"):
        return np.where(there, each, 0).sum(1) / there.sum(1)


def error_of(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the error of all molecules, see `errors_of`."""
    return float(errors_of(metric, y, prediction, np.ones((1, len(y))))[0])


def _one_minus_auc(y: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return 1 - ROC-AUC of one target for each draw, NaN where a class is missing."""
    if not len(y):
        return np.full(len(counts), np.nan)
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    sorted_counts, label = counts[:, order], y[order]
    positive, negative = (  # (draws, scores)
        np.add.reduceat(sorted_counts * (label == one), starts, axis=1) for one in (1, 0)
    )
    pairs = positive.sum(1) * negative.sum(1)
    below = np.cumsum(negative, 1) - negative / 2  # half of the negatives with the same score
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - (positive * below).sum(1) / pairs
        return np.where(pairs > 0, np.maximum(found, 0.5 / pairs), np.nan)  # log(0) is infinite


def compare(metric: str, pairs: Sequence[Pair], seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two arms over splits and seeds.

    Splits, in each of them seeds, and molecules are drawn again, with replacement, so that the
    interval holds the chance of all three. A molecule that is drawn twice is twice in each test
    part that has it: splits of a small table share most of their molecules, and with them chance.

    Raises:
        ValueError: the errors of no draw can be compared: no target has both classes.
    """
    rng = np.random.default_rng(seed)
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, []).append(pair)
    groups = list(by_split.values())
    molecules = sorted({uid for pair in pairs for uid in pair.uids})
    place = {uid: number for number, uid in enumerate(molecules)}
    at = [np.array([place[uid] for uid in members[0].uids]) for members in groups]
    # Splits and molecules are drawn before all else, so that designs that share them are drawn
    # alike: `pool`.
    picked = rng.integers(len(groups), size=(draws, len(groups)))
    each = [np.empty((len(members), draws)) for members in groups]
    for some in np.array_split(np.arange(draws), 1 + draws * len(molecules) // AT_ONCE):
        counts = _drawn(rng, len(some), len(molecules))
        for members, places, ratios in zip(groups, at, each, strict=True):
            for pair, row in zip(members, ratios, strict=True):
                row[some] = _log_ratios(metric, pair, counts[:, places])
    total, count = np.zeros(draws), np.zeros(draws)
    for number, ratios in enumerate(each):
        draw, _ = np.nonzero(picked == number)
        seeds = rng.integers(len(ratios), size=(len(ratios), len(draw)))
        chosen = ratios[seeds, draw]
        np.add.at(total, draw, np.nansum(chosen, 0))
        np.add.at(count, draw, np.isfinite(chosen).sum(0))
    if not count.any():
        raise ValueError("no draw has a target with both classes")
    drawn = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    found = [_log_ratios(metric, pair, np.ones((1, len(pair.y))))[0] for pair in pairs]
    return Comparison(float(np.nanmean(found)), drawn, len(groups))


def _drawn(rng: np.random.Generator, draws: int, molecules: int) -> np.ndarray:
    """Return how often each molecule is drawn of as many, (draws, molecules)."""
    rows = rng.integers(molecules, size=(draws, molecules)) + molecules * np.arange(draws)[:, None]
    counts = np.bincount(rows.ravel(), minlength=draws * molecules)
    return counts.reshape(draws, molecules).astype(np.float64)


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the mean of several designs; those of the same splits do not count as independent."""
    drawn = np.mean([found.drawn for found in comparisons], 0)
    ratio = float(np.mean([found.log_ratio for found in comparisons]))
    return Comparison(ratio, drawn, min(found.splits for found in comparisons))


def _log_ratios(metric: str, pair: Pair, counts: np.ndarray) -> np.ndarray:
    one, other = (errors_of(metric, pair.y, p, counts) for p in (pair.one, pair.other))
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
