"""Paired comparisons of two arms: the log-ratio of their errors with its interval."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from msde.downstream.metrics import over_targets

DRAWS = 1000  # of the bootstrap over molecules
AT_ONCE = 4 * 10**6  # weights of molecules, for memory
REMEMBERED = 10_000  # molecules whose weights are kept for the next comparison, 4 kB each
TINY = 1e-9  # below this a deviation is rounding
EQUIVALENCE = 0.01  # log-ratios within +-1 % are practically equal


@dataclass(frozen=True)
class Pair:
    """Test predictions of two arms with the same split and seed."""

    split: str
    seed: int
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

    Of a single split its seeds stand for splits: they share all test molecules. What other splits
    would show is not in that interval. Of a single seed nothing says how much training varies, and
    the interval is infinite.
    """

    log_ratio: float
    ratios: dict[str, float]  # of each split, or of each seed of a single one
    drawn: dict[str, np.ndarray]  # the same with molecules weighed anew, (draws,)
    splits: int

    @property
    def deviation(self) -> float:
        """That of the log-ratio; infinite where nothing varies, as of one error of forces."""
        count = len(self.ratios)
        if count < 2:
            return math.inf
        drawn = np.stack(list(self.drawn.values()))  # (count, draws)
        drawn = drawn[:, np.isfinite(drawn).all(0)]
        covariances = np.cov(drawn, ddof=0) if drawn.size else np.zeros((count, count))
        own = np.var(list(self.ratios.values()), ddof=1) / count
        shared = (covariances.sum() - covariances.trace()) / (count * (count - 1))
        found = math.sqrt(own + max(0.0, shared))
        return math.inf if found < TINY < abs(self.log_ratio) else found

    @property
    def _freedom(self) -> int:
        return max(1, len(self.ratios) - 1)

    @property
    def _half_width(self) -> float:
        return float(scipy.stats.t.ppf(0.975, self._freedom)) * self.deviation

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.log_ratio - self._half_width

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.log_ratio + self._half_width

    @property
    def p(self) -> float:
        """Two-sided probability of such a log-ratio between equal arms."""
        deviation = self.deviation
        if not deviation:
            return float(self.log_ratio == 0)
        return float(2 * scipy.stats.t.sf(abs(self.log_ratio) / deviation, self._freedom))

    @property
    def verdict(self) -> str:
        """`equal` if the interval is within +-1 %, else `better` or `worse` if it excludes zero."""
        if self.low > -EQUIVALENCE and self.high < EQUIVALENCE:
            return "equal"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "open"


def errors_of(
    metric: str, y: np.ndarray, prediction: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the error over targets: of ROC-AUC the mean of 1 - AUC, else the geometric mean.

    The latter weighs targets alike whatever their units are.

    Args:
        y: (molecules, targets), NaN where missing; and so `prediction`.
        weights: (draws, molecules) of each molecule, as how often it is measured.

    Returns:
        (draws,), NaN where no target has what the metric needs.
    """
    known = ~np.isnan(y)
    if metric == "roc_auc":
        targets = zip(y.T, prediction.T, known.T, strict=True)
        each = [_one_minus_auc(a[k], b[k], weights[:, k]) for a, b, k in targets]
        return over_targets(np.stack(each, 1))
    difference = np.where(known, prediction - y, 0)
    losses = np.abs(difference) if metric == "mae" else np.square(difference)
    with np.errstate(invalid="ignore"):
        mean = weights @ losses / (weights @ known.astype(weights.dtype))  # (draws, targets)
    return over_targets(np.sqrt(mean) if metric == "rmse" else mean, geometric=True)


def error_of(metric: str, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the error of all molecules, see `errors_of`."""
    return float(errors_of(metric, y, prediction, np.ones((1, len(y))))[0])


def _one_minus_auc(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return 1 - ROC-AUC of one target for each draw, NaN where a class is missing."""
    if not len(y):
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    sorted_weights, label = weights[:, order], y[order]
    positive, negative = (  # (draws, scores)
        np.add.reduceat(sorted_weights * (label == one), starts, axis=1) for one in (1, 0)
    )
    pairs = positive.sum(1) * negative.sum(1)
    below = np.cumsum(negative, 1) - negative / 2  # half of the negatives with the same score
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - (positive * below).sum(1) / pairs
        return np.where(pairs > 0, np.maximum(found, 0.5 / pairs), np.nan)  # log(0) is infinite


def compare(metric: str, pairs: Sequence[Pair], seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two arms over splits and seeds.

    A molecule has the same weight in each test part that has it: splits of a small table share most
    of their molecules, and with them chance.

    Raises:
        ValueError: the errors of no draw can be compared: no target has both classes.
    """
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(pair.split, []).append(pair)
    parts = by_split
    if len(by_split) == 1:
        parts = {f"{pair.split}, seed {pair.seed}": [pair] for pair in pairs}
    molecules = sorted({str(uid) for pair in pairs for uid in pair.uids})
    place = {uid: number for number, uid in enumerate(molecules)}
    at = {name: [place[str(uid)] for uid in part[0].uids] for name, part in parts.items()}
    weights = np.stack([_weights(uid, seed, draws) for uid in molecules], 1)  # (draws, molecules)
    drawn = {name: np.empty(draws) for name in parts}
    for some in np.array_split(np.arange(draws), 1 + weights.size // AT_ONCE):
        for name, members in parts.items():
            of_part = weights[some][:, at[name]].astype(np.float64)
            drawn[name][some] = _mean_log_ratio(metric, members, of_part)
    if not np.isfinite(list(drawn.values())).any():
        raise ValueError("no draw has a target with both classes")
    ratios = {
        name: float(_mean_log_ratio(metric, members, np.ones((1, len(members[0].y))))[0])
        for name, members in parts.items()
    }
    return Comparison(float(np.mean(list(ratios.values()))), ratios, drawn, len(by_split))


def _mean_log_ratio(metric: str, pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """Return the mean log-ratio of some seeds of a split for each draw, (draws,)."""
    errors = (
        [errors_of(metric, pair.y, p, weights) for p in (pair.one, pair.other)] for pair in pairs
    )
    return np.mean([np.log(one / other) for one, other in errors], 0)


@functools.lru_cache(maxsize=REMEMBERED)
def _weights(uid: str, seed: int, draws: int) -> np.ndarray:
    """Return the weight of a molecule in each draw, exponential with the mean 1, (draws,) float32.

    It is a function of the molecule, whatever the others are: so draws of two designs agree in the
    molecules that both have.

    Source: Rubin 1981, the Bayesian bootstrap.
    """
    digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    return rng.standard_exponential(draws, dtype=np.float32)


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the mean of several designs; molecules that they share do not count as independent.

    Its variance is that of the splits that all designs have, or of the seeds of a single split.
    """
    shared = [
        name for name in comparisons[0].ratios if all(name in found.ratios for found in comparisons)
    ]
    ratio = float(np.mean([found.log_ratio for found in comparisons]))
    ratios = {name: float(np.mean([c.ratios[name] for c in comparisons])) for name in shared}
    drawn = {name: np.mean([c.drawn[name] for c in comparisons], 0) for name in shared}
    return Comparison(ratio, ratios, drawn, min(found.splits for found in comparisons))


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
