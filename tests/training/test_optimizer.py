"""Learning-rate schedules, and steps that the optimizer skips."""

import copy
import math

import pytest
import torch

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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_adam_is_told_to_skip_changes_neither_weights_nor_state(bad):
    """What `GradientCheck` relies on: fused Adam looks at `found_inf`."""
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.Adam(weights, lr=0.1, fused=True)

    def step(value):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        weights[1].grad[0] = value
        optimizer.found_inf = torch.tensor(float(not math.isfinite(value)))
        optimizer.step()
        return [weight.detach().clone() for weight in weights], copy.deepcopy(
            optimizer.state_dict()["state"]
        )

    before, state = step(1.0)
    assert not torch.equal(before[0], torch.ones(3))
    after, same_state = step(bad)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for number, values in state.items():
        assert all(torch.equal(values[key], same_state[number][key]) for key in values)
    assert not torch.equal(step(1.0)[0][0], before[0])
