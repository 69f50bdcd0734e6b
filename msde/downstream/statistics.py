"""Paired comparisons of two arms: the log-ratio of their errors with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

DRAWS = 1000  # of the bootstrap over molecules
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
    """The mean log-ratio of errors over splits, below 0 where the first arm is better.

    Its variance is that of a mean of S values that depend on each other, s^2 / S + c. s^2 is the
    variance of the log-ratios of the splits: it holds the chance of training molecules, of seeds,
    and of test molecules that no other split has. c is their mean covariance by the chance of test
    molecules that splits share, from a bootstrap over molecules. The interval and p are Student's,
    with a degree of freedom for each split but one.

    Of a single split its seeds stand for splits, and c is the whole variance of the bootstrap. What
    other splits would show is not in that interval.
    """

    log_ratio: float
    ratios: dict[str, float]  # of each split, or of each seed of a single one
    drawn: dict[str, np.ndarray]  # the same with drawn molecules, (draws,)
    splits: int

    @property
    def deviation(self) -> float:
        """That of the log-ratio; infinite where nothing varies, as of one error of forces."""
        count = len(self.ratios)
        if not count:
            return math.inf
        drawn = np.stack(list(self.drawn.values()))  # (count, draws)
        drawn = drawn[:, np.isfinite(drawn).all(0)]
        covariances = np.atleast_2d(np.cov(drawn, ddof=0)) if drawn.size else np.zeros((1, 1))
        own = np.var(list(self.ratios.values()), ddof=1) / count if count > 1 else 0.0
        if self.splits == 1:
            of_molecules = covariances.mean()
        else:
            of_molecules = (covariances.sum() - covariances.trace()) / (count * (count - 1))
        found = math.sqrt(own + max(0.0, of_molecules))
        return math.inf if found < TINY < abs(self.log_ratio) else found

    @property
    def _student(self) -> scipy.stats.rv_continuous:
        return scipy.stats.t(self.splits - 1 if self.splits > 1 else np.inf)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.log_ratio - self._student.ppf(0.975) * self.deviation

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.log_ratio + self._student.ppf(0.975) * self.deviation

    @property
    def p(self) -> float:
        """Two-sided probability of such a log-ratio between equal arms."""
        if not self.deviation:
            return float(self.log_ratio == 0)
        return float(2 * self._student.sf(abs(self.log_ratio) / self.deviation))

    @property
    def verdict(self) -> str:
        """`equal` if the interval is within +-1 %, else `better` or `worse` if it excludes zero."""
        if self.low > -EQUIVALENCE and self.high < EQUIVALENCE:
            return "equal"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "open"


def errors_of(metric: str, y: np.ndarray, prediction: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the error over targets: of ROC-AUC the mean of 1 - AUC, else the geometric mean.

    The latter weighs targets alike whatever their units are.

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
        each = np.log(np.maximum(np.sqrt(each) if metric == "rmse" else each, 1e-9))
    there = np.isfinite(each)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, each, 0).sum(1) / there.sum(1)
    return mean if metric == "roc_auc" else np.exp(mean)


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

    A molecule that is drawn twice is twice in each test part that has it: splits of a small table
    share most of their molecules, and with them chance.

    Raises:
        ValueError: the errors of no draw can be compared: no target has both classes.
    """
    rng = np.random.default_rng(seed)
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, []).append(pair)
    parts = by_split if len(by_split) > 1 else {str(n): [pair] for n, pair in enumerate(pairs)}
    molecules = sorted({uid for pair in pairs for uid in pair.uids})
    place = {uid: number for number, uid in enumerate(molecules)}
    at = {name: np.array([place[uid] for uid in part[0].uids]) for name, part in parts.items()}
    drawn = {name: np.empty(draws) for name in parts}
    for some in np.array_split(np.arange(draws), 1 + draws * len(molecules) // AT_ONCE):
        counts = _drawn(rng, len(some), len(molecules))
        for name, members in parts.items():
            drawn[name][some] = _mean_log_ratio(metric, members, counts[:, at[name]])
    if not np.isfinite(list(drawn.values())).any():
        raise ValueError("no draw has a target with both classes")
    ratios = {
        name: float(_mean_log_ratio(metric, members, np.ones((1, len(members[0].y))))[0])
        for name, members in parts.items()
    }
    return Comparison(float(np.mean(list(ratios.values()))), ratios, drawn, len(by_split))


def _mean_log_ratio(metric: str, pairs: Sequence[Pair], counts: np.ndarray) -> np.ndarray:
    """Return the mean log-ratio of some seeds of a split for each draw, (draws,)."""
    errors = (
        [errors_of(metric, pair.y, p, counts) for p in (pair.one, pair.other)] for pair in pairs
    )
    return np.mean([np.log(one / other) for one, other in errors], 0)


def _drawn(rng: np.random.Generator, draws: int, molecules: int) -> np.ndarray:
    """Return how often each molecule is drawn of as many, (draws, molecules)."""
    rows = rng.integers(molecules, size=(draws, molecules)) + molecules * np.arange(draws)[:, None]
    counts = np.bincount(rows.ravel(), minlength=draws * molecules)
    return counts.reshape(draws, molecules).astype(np.float64)


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the mean of several designs; those of the same splits do not count as independent.

    Its variance is that of the splits that all designs have.
    """
    shared = [
        name for name in comparisons[0].ratios if all(name in found.ratios for found in comparisons)
    ]
    ratio = float(np.mean([found.log_ratio for found in comparisons]))
    ratios = {name: float(np.mean([c.ratios[name] for c in comparisons])) for name in shared}
    drawn = {name: np.mean([c.drawn[name] for c in comparisons], 0) for name in shared}
    splits = min(len(shared), *(found.splits for found in comparisons))
    return Comparison(ratio, ratios, drawn, splits)


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
