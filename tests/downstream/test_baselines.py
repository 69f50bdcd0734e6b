"""Estimators on fixed features: bounded off the training range, and the best in validation."""

import numpy as np
import pytest

from msde.downstream.baselines import ESTIMATORS, fit_knn, fit_ridge
from msde.downstream.splits import Split
from msde.downstream.tasks import get_task

pytest.importorskip("sklearn")
SPLIT = Split(np.arange(40), np.arange(40, 60), np.arange(60, 100))


class Labels:
    """The one field of TaskData that estimators read."""

    def __init__(self, y):
        self.y = y


def made(seed=0):
    """Labels that the first feature decides; the last one varies outside of training alone."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(100, 5))
    features[:40, -1] = 1e-6 * rng.normal(size=40)
    y = features[:, :1] + 0.01 * rng.normal(size=(100, 1))
    return Labels(y), features


def error(data, predictions):
    return np.abs(predictions - data.y)[SPLIT.test].mean()


def test_a_feature_that_hardly_varies_in_training_does_not_decide_the_rest():
    data, features = made()
    task = get_task("custom", metric="rmse")
    assert error(data, fit_ridge(task, data, features, SPLIT, 0)) < 0.3


@pytest.mark.parametrize("name", ["ridge", "knn"])
def test_labels_that_features_decide_are_learned(name):
    data, features = made()
    task = get_task("custom", metric="mae")
    found = ESTIMATORS[name](task, data, features[:, :1], SPLIT, 0)
    assert found.shape == data.y.shape and error(data, found) < 0.2


def test_neighbours_are_no_more_than_the_known_labels():
    data, features = made()
    data.y[4:40] = np.nan
    task = get_task("custom", metric="rmse")
    found = fit_knn(task, data, features, SPLIT, 0)
    assert np.isfinite(found).all()
    assert found.min() >= np.nanmin(data.y[:4]) and found.max() <= np.nanmax(data.y[:4])


def test_of_classes_neighbours_give_probabilities():
    data, features = made()
    data.y = (data.y > 0).astype(float)
    found = fit_knn(get_task("custom", metric="roc_auc"), data, features[:, :1], SPLIT, 0)
    assert 0 <= found.min() and found.max() <= 1
    assert ((found > 0.5) == data.y)[SPLIT.test].mean() > 0.9


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_target_is_fitted_to_its_own_labels(name, monkeypatch):
    """Of one class, or of no label, the prediction is that class, or a half."""
    monkeypatch.setattr("msde.downstream.baselines.TREES", 20)
    data, features = made()
    first = (data.y > 0).astype(float)
    data.y = np.hstack([first, np.ones((100, 1)), np.full((100, 1), np.nan), 1 - first])
    task = get_task("custom", metric="roc_auc")
    found = ESTIMATORS[name](task, data, features[:, :1], SPLIT, 0)
    assert ((found[:, [0, 3]] > 0.5) == data.y[:, [0, 3]])[SPLIT.test].mean() > 0.9
    assert (found[:, 1] == 1).all() and (found[:, 2] == 0.5).all()
