"""Learning-rate schedules."""

import math

import pytest

from msde.config import OptimConfig
from msde.training.optimizer import learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])],
)
def test_schedules_after_a_linear_warm_up(schedule, expected):
    optim = OptimConfig(schedule=schedule, warmup_steps=10)
    assert [learning_rate_factor(step, 110, optim) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    found = [learning_rate_factor(step, 110, optim) for step in (10, 60, 110)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_cosine_halfway_down():
    optim = OptimConfig(schedule="cosine")
    assert learning_rate_factor(25, 100, optim) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
