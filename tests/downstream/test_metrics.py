"""Metrics equal scikit-learn's, ties and missing labels included."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from msde.downstream.metrics import (
    is_better,
    mae,
    over_targets,
    per_target,
    rmse,
    roc_auc,
    unit_free,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_roc_auc_is_that_of_scikit_learn(rng):
    for _ in range(20):
        y = rng.integers(0, 2, 50).astype(float)
        score = rng.integers(0, 12, 50) / 3  # with many ties
        known = rng.random(50) > 0.2
        assert roc_auc(np.where(known, y, np.nan), score) == pytest.approx(
            roc_auc_score(y[known], score[known]), abs=1e-12
        )


def test_errors_are_those_of_scikit_learn(rng):
    y, prediction = rng.normal(size=(2, 40))
    assert rmse(y, prediction) == pytest.approx(root_mean_squared_error(y, prediction), abs=1e-12)
    assert mae(y, prediction) == pytest.approx(mean_absolute_error(y, prediction), abs=1e-12)
    y[:10] = np.nan
    expected = root_mean_squared_error(y[10:], prediction[10:])
    assert rmse(y, prediction) == pytest.approx(expected, abs=1e-12)


def test_no_unit_of_a_target_decides_what_is_chosen():
    """In other units both choices are multiplied alike, and NaN stands for no target."""
    one, other = [1.0, 100.0], [0.5, 150.0]
    assert unit_free("rmse", other) < unit_free("rmse", one) == pytest.approx(10)
    for size in (1e-3, 1e3):
        ratio = unit_free("mae", [0.5, 150 * size]) / unit_free("mae", [1.0, 100 * size])
        assert ratio == pytest.approx(unit_free("mae", other) / unit_free("mae", one))
    assert unit_free("rmse", [3.0, None, float("nan")]) == 3.0
    assert np.isnan(unit_free("rmse", [None]))
    assert unit_free("roc_auc", [0.5, 0.9, None]) == pytest.approx(0.7)


def test_the_mean_is_over_targets_with_both_classes():
    y = np.array([[0, 0, 1], [1, 0, np.nan], [0, 0, 0], [1, 0, 1]], float)
    score = np.array([[0.1, 0.3, 0.9], [0.8, 0.2, 0.5], [0.9, 0.1, 0.2], [0.7, 0.6, 0.1]])
    each = per_target("roc_auc", y, score)
    assert np.isnan(each[1])
    assert over_targets(each) == pytest.approx((each[0] + each[2]) / 2)
    assert np.isnan(over_targets(each[1:2]))


def test_a_larger_auc_and_a_smaller_error_are_better():
    assert is_better("roc_auc", 0.8, 0.7) and not is_better("roc_auc", 0.6, 0.7)
    assert is_better("rmse", 0.6, 0.7) and not is_better("mae", 0.8, 0.7)
    assert is_better("rmse", 3.0, float("nan")) and not is_better("rmse", float("nan"), 1.0)
