"""Intervals hold the truth as often as they should, and Holm's correction is that of its paper."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from msde.downstream.metrics import per_target, unit_free
from msde.downstream.statistics import Pair, compare, errors_of, holm, pool, wilcoxon


def pairs(rng, ratio, seeds=3, rows=80):
    """Predictions of two arms whose errors have a known ratio, with the same labels."""
    y = rng.normal(size=(rows, 1))
    made = []
    for seed in range(seeds):
        one, other = (y + size * rng.normal(size=y.shape) for size in (ratio, 1))
        made.append(Pair("s", seed, range(rows), y, one, other))
    return made


def test_a_clear_difference_is_found_with_its_sign_and_size():
    found = compare("rmse", pairs(np.random.default_rng(0), 0.7, seeds=8), draws=200)
    assert found.low < np.log(0.7) < found.high < 0 and found.verdict == "better"
    assert found.log_ratio == pytest.approx(np.log(0.7), abs=0.1)
    assert found.p < 0.05
    assert (
        compare("rmse", pairs(np.random.default_rng(1), 1.5, seeds=8), draws=200).verdict == "worse"
    )


def test_intervals_of_equal_arms_hold_zero_as_often_as_they_should():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        found = compare("rmse", pairs(rng, 1.0), draws=60)
        hits += found.low <= 0 <= found.high
    assert hits >= 34  # of 40; 95 % are 38


def test_seeds_of_one_split_do_not_replace_splits():
    """Seeds that repeat a split's predictions add nothing: the interval stays as wide."""
    splits = []
    for number in range(4):
        split_rng = np.random.default_rng(number)
        (pair,) = pairs(split_rng, np.exp(split_rng.normal()), seeds=1)
        uids = [f"{number}-{row}" for row in range(len(pair.y))]
        splits.append(dataclasses.replace(pair, split=str(number), uids=uids))
    alone, repeated = (compare("rmse", given, draws=300) for given in (splits, splits * 5))
    width = alone.high - alone.low
    assert repeated.high - repeated.low == pytest.approx(width, rel=0.15)


def few_splits(rng, splits=5):
    """Two arms whose log-ratio of errors is normal around 0 over the splits, exactly known."""
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    ratios = rng.normal(size=splits)
    return [Pair(str(n), 0, [n], zero, np.exp(r) * one, one) for n, r in enumerate(ratios)]


def test_intervals_of_five_splits_hold_the_truth_in_95_of_100():
    """Quantiles of the bootstrap hold it in 83 of 100."""
    rng = np.random.default_rng(0)
    found = [compare("mae", few_splits(rng), draws=150) for _ in range(150)]
    hits = np.mean([each.low <= 0 <= each.high for each in found])
    assert 0.90 <= hits <= 0.99
    assert 0.01 <= np.mean([each.p < 0.05 for each in found]) <= 0.10


@pytest.mark.parametrize("shared", [True, False])
def test_intervals_hold_the_truth_whether_or_not_splits_share_their_test_molecules(shared):
    """The chance of shared molecules is that of all splits: more splits do not make it smaller."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(60):
        y, errors = np.zeros((60, 1)), rng.exponential(size=(2, 60, 1))
        made = []
        for split in range(10):
            if not shared:
                errors = rng.exponential(size=(2, 60, 1))
            uids = [f"{0 if shared else split}-{row}" for row in range(60)]
            noisy = errors * np.exp(0.1 * rng.normal(size=errors.shape))
            made.append(Pair(str(split), 0, uids, y, *noisy))
        found = compare("mae", made, draws=150)
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(hits) >= 0.88


@pytest.mark.parametrize("table", [100, 140, 1000])
def test_the_deviation_is_that_of_log_ratios_from_all_to_hardly_any_shared_molecules(table):
    """Five test parts of 100 of so many molecules, two seeds: neither too wide nor too narrow."""
    rng, squares, ratios = np.random.default_rng(0), [], []
    for _ in range(80):
        errors, made = rng.exponential(size=(2, table, 1)), []
        for split in range(5):
            members = rng.choice(table, 100, replace=False)
            noisy = errors[:, members] * np.exp(0.1 * rng.normal(size=(2, 100, 1)))
            for seed, size in enumerate(np.exp(0.1 * rng.normal(size=(2, 2, 1, 1)))):
                given = members.tolist(), np.zeros((100, 1)), *noisy * size
                made.append(Pair(str(split), seed, *given))
        found = compare("mae", made, draws=150)
        squares.append(((found.high - found.low) / 2 / scipy.stats.t(4).ppf(0.975)) ** 2)
        ratios.append(found.log_ratio)
    assert np.mean(squares) == pytest.approx(np.mean(np.square(ratios)), rel=0.4)


def one_split(rng, seeds):
    """Two equal arms whose errors differ by an effect of the seed, and a little by molecules."""
    y, hardness = np.zeros((40, 1)), np.exp(0.03 * rng.normal(size=(2, 40, 1)))
    of_seeds = np.exp(0.2 * rng.normal(size=(seeds, 2, 1, 1)))
    return [Pair("s", n, range(40), y, *(hardness * e)) for n, e in enumerate(of_seeds)]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_one_split_know_how_few_its_seeds_are(seeds):
    """With normal quantiles 30 of 100 do not hold zero with two seeds."""
    rng = np.random.default_rng(seeds)
    found = [compare("mae", one_split(rng, seeds), draws=50) for _ in range(120)]
    assert 0.90 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.99


def test_of_a_single_seed_there_is_no_verdict():
    found = compare("rmse", pairs(np.random.default_rng(0), 0.2, seeds=1), draws=50)
    assert found.log_ratio < -1 and found.verdict == "open" and found.p == 1
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_one_error_alone_says_nothing():
    """As of forces with one split and one seed."""
    y = np.zeros((1, 1))
    found = compare("mae", [Pair("s", 0, ["forces"], y, y + 0.5, y + 0.51)], draws=50)
    assert found.log_ratio < 0 and found.verdict == "open" and found.p == 1


def test_errors_of_draws_are_those_of_the_molecules_repeated():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, size=(25, 3)).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    scores = rng.normal(size=y.shape).round(1)  # with ties
    rows = rng.integers(25, size=(8, 25))
    counts = np.stack([np.bincount(row, minlength=25) for row in rows]).astype(float)
    for metric in ("roc_auc", "rmse", "mae"):
        each = [per_target(metric, y[row], scores[row]) for row in rows]
        expected = [unit_free(metric, values) for values in each]
        found = errors_of(metric, y, scores, counts)
        assert found == pytest.approx([1 - e if metric == "roc_auc" else e for e in expected])


def test_pooled_designs_of_the_same_molecules_do_not_count_twice():
    rng = np.random.default_rng(0)
    first, second = (compare("mae", few_splits(rng), draws=400) for _ in range(2))
    same, both = pool([first, first]), pool([first, second])
    assert (same.low, same.high) == pytest.approx((first.low, first.high))
    assert both.log_ratio == pytest.approx((first.log_ratio + second.log_ratio) / 2)
    assert both.high - both.low < 0.9 * max(first.high - first.low, second.high - second.low)


def test_two_copies_of_a_design_do_not_count_twice_where_one_lacks_a_molecule():
    """Nor where their molecules are in another order."""
    whole, without = [], []
    rng, order = np.random.default_rng(0), np.random.default_rng(1).permutation(60)[1:]
    y, errors = np.zeros((60, 1)), rng.exponential(size=(2, 60, 1))
    for split in "abc":
        one, other = errors * np.exp(0.05 * rng.normal(size=(2, 60, 1)))
        whole.append(Pair(split, 0, range(60), y, one, other))
        without.append(Pair(split, 0, order.tolist(), y[order], one[order], other[order]))
    parts = [compare("mae", given) for given in (whole, without)]
    widths = [found.high - found.low for found in (*parts, pool(parts))]
    assert widths[2] == pytest.approx(np.mean(widths[:2]), rel=0.03)


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_no_unit_of_the_labels_decides(metric):
    given, small = pairs(np.random.default_rng(0), 0.7, seeds=5), []
    for pair in given:
        numbers = {name: 1e-10 * getattr(pair, name) for name in ("y", "one", "other")}
        small.append(dataclasses.replace(pair, **numbers))
    one, other = (compare(metric, made, draws=50) for made in (given, small))
    assert (one.low, one.high) == pytest.approx((other.low, other.high)) and one.log_ratio < -0.2


def test_the_same_predictions_are_equal():
    y = np.random.default_rng(0).normal(size=(30, 2))
    given = (Pair("s", seed, range(30), y, y + 1, y + 1) for seed in range(2))
    found = compare("mae", list(given), draws=50)
    assert found.log_ratio == 0 and found.verdict == "equal" and found.p == 1


def test_of_classes_the_error_is_one_minus_auc():
    y = np.array([[0], [0], [1], [1]] * 10, float)
    rng, made = np.random.default_rng(0), []
    for seed in range(5):
        good, bad = y + 0.6 * rng.normal(size=y.shape), rng.normal(size=y.shape)
        made.append(Pair("s", seed, range(40), y, good, bad))
    assert compare("roc_auc", made, draws=100).verdict == "better"


def test_wilcoxon_sees_that_most_designs_agree():
    assert wilcoxon([-0.1, -0.2, -0.05, -0.3, -0.15, -0.02, -0.4, 0.01]) < 0.05
    assert wilcoxon([-0.1, 0.11, -0.2, 0.19]) > 0.5 and wilcoxon([0.0, 0.0]) == 1


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
