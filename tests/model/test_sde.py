import math
from typing import get_args, get_type_hints

import pytest
import torch

from msde.config import SDEConfig, make_config
from msde.model.sde import (
    SDES,
    VESDE,
    VPSDE,
    SubVPSDE,
    input_scale,
    make_sde,
    per_row,
    perturb,
    score_from_noise,
)

RANGES = {
    "VE": VESDE(0.2, 1.0),
    "VE wide": VESDE(0.1, 10.0),
    "VP": VPSDE(0.2, 1.0),
    "VP wide": VPSDE(0.1, 20.0),
    "VP scaled": VPSDE(0.1, 20.0, scale=1.7),
    "sub-VP": SubVPSDE(0.1, 20.0),
    "sub-VP narrow": SubVPSDE(0.2, 1.0),
}
# Molecules of 1 to 9 atoms, one time each: the layout of positions and of dense adjacency.
ATOMS = torch.tensor([1, 2, 5, 9])
LAYOUTS = {"ragged": (ATOMS.sum().item(), 3), "dense": (len(ATOMS), 9, 9)}


def test_every_kind_of_the_configuration_is_in_the_table():
    assert set(SDES) == set(get_args(get_type_hints(SDEConfig)["kind"]))


def times_for(layout, values):
    return values.repeat_interleave(ATOMS) if layout == "ragged" else values


@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("shape", [(64, 3), (64,), (64, 5, 5)])
def test_rows_of_any_shape_have_one_time_each(sde, shape):
    x, t = torch.randn(shape), torch.rand(64)
    mean, std = sde.marginal_prob(x, t)
    drift, diffusion = sde.sde(x, t)
    assert mean.shape == drift.shape == x.shape
    assert std.shape == diffusion.shape == t.shape
    row = 7
    one_mean, one_std = sde.marginal_prob(x[row : row + 1], t[row : row + 1])
    assert torch.allclose(mean[row], one_mean[0]) and torch.allclose(std[row], one_std[0])


@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
def test_marginals_solve_the_sde(sde):
    """d mean / dt = drift of the mean, and d var / dt = 2 (drift / x) var + diffusion^2."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    x = torch.ones_like(t)
    step = 1e-6
    (mean, std), (mean_after, std_after) = sde.marginal_prob(x, t), sde.marginal_prob(x, t + step)
    drift, diffusion = sde.sde(mean, t)
    rate = sde.sde(x, t)[0]
    assert torch.allclose((mean_after - mean) / step, drift, rtol=1e-4, atol=1e-6)
    slope = (std_after**2 - std**2) / step
    expected = 2 * rate * std**2 + diffusion**2
    if isinstance(sde, VESDE):  # its marginal starts at sigma_min, not at zero
        expected = diffusion**2
    assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
def test_simulated_moments_equal_the_closed_form(sde, layout):
    """Simulate to another end time in each molecule; compare with the closed form."""
    generator = torch.Generator().manual_seed(0)
    num_steps, paths, start = 300, 400, 1.5
    end = times_for(layout, torch.tensor([0.1, 0.4, 0.7, 1.0]))  # (rows,)
    rows, *rest = LAYOUTS[layout]
    t_end = end.repeat(paths)  # (paths * rows,)
    x = torch.full((paths * rows, *rest), start)
    if isinstance(sde, VESDE):
        x = x + sde.sigma_min * torch.randn(x.shape, generator=generator)
    step = t_end / num_steps
    for k in range(num_steps):
        drift, diffusion = sde.sde(x, (k + 0.5) * step)
        noise = torch.randn(x.shape, generator=generator)
        x = x + drift * per_row(step, x) + noise * per_row(diffusion * step.sqrt(), x)
    x = x.view(paths, rows, -1)
    mean, std = sde.marginal_prob(torch.full((rows, *rest), start), end)
    for value in end.unique():
        found = x[:, end == value]
        expected_mean, expected_std = mean[end == value].mean(), std[end == value][0]
        error = expected_std / math.sqrt(found.numel())
        assert abs(found.mean() - expected_mean) < 4 * error + 0.01 * expected_mean
        assert abs(found.std() / expected_std - 1) < 4 / math.sqrt(found.numel()) + 0.02


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
def test_the_reverse_process_of_a_gaussian_recovers_it(sde, layout):
    """Data N(1, 0.5^2): the exact noise is known, so the reverse SDE must return to the data."""
    generator = torch.Generator().manual_seed(0)
    num_steps, paths = 1000, 200
    rows, *rest = LAYOUTS[layout]
    shape = (paths * rows, *rest)

    def moments(t):
        mean, std = sde.marginal_prob(torch.ones(shape), t)
        return mean, std, torch.sqrt((0.5 * mean).square() + per_row(std, mean).square())

    def noise_pred(x, t):  # E[noise | x_t = x], the output of a perfect network
        mean, std, spread = moments(t)
        return per_row(std, x) * (x - mean) / spread.square()

    t = torch.ones(shape[0])
    mean, _, spread = moments(t)
    x = mean + spread * torch.randn(shape, generator=generator)
    for k in range(num_steps, 0, -1):
        t = torch.full((shape[0],), (k - 0.5) / num_steps)
        drift, diffusion = sde.sde(x, t)
        score = score_from_noise(noise_pred(x, t), moments(t)[1])
        noise = torch.randn(shape, generator=generator)
        x = x - (drift - per_row(diffusion.square(), x) * score) / num_steps
        x = x + per_row(diffusion, x) * noise / math.sqrt(num_steps)
    left_over = sde.sigma_min if isinstance(sde, VESDE) else 0.0
    error = 3 / math.sqrt(x.numel())
    assert abs(x.mean() - 1) < error + 0.02
    assert abs(x.std() / math.hypot(0.5, left_over) - 1) < error + 0.02


@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
def test_the_ratio_of_std_and_alpha_gives_the_time_back(sde):
    t = torch.cat([torch.logspace(-6, -1, 20), torch.linspace(0.1, 1, 50)]).double()
    alpha, std = sde.marginal_prob(torch.ones_like(t), t)
    assert torch.allclose(sde.time_of(std / alpha), t, rtol=1e-9, atol=1e-14)
    assert torch.allclose(sde.time_of((std / alpha).float()), t.float(), rtol=1e-3, atol=1e-5)


def test_prior_samples_have_the_standard_deviation_of_the_prior():
    noise = torch.randn(100)
    assert torch.equal(VESDE(0.1, 10).prior_sampling(noise), 10 * noise)
    assert torch.equal(VPSDE(0.1, 20).prior_sampling(noise), noise)
    assert torch.equal(SubVPSDE(0.1, 20, scale=1.7).prior_sampling(noise), 1.7 * noise)


@pytest.mark.parametrize("kind", ["VE", "VP", "subVP"])
@pytest.mark.parametrize(("part", "spread"), [("conformer", 1.7), ("topology", 1.0)])
def test_the_schedules_of_base_end_at_their_prior(kind, part, spread):
    """The mean divergence of p(x_1 | x_0) from the prior over data of this spread, in nats."""
    config = getattr(make_config("base").model, part).sde

    def divergence(config):
        config.kind = kind
        sde = make_sde(config)
        mean, std = sde.marginal_prob(torch.tensor([spread]), torch.ones(1))
        prior = sde.prior_sampling(torch.ones(1))
        ratio = (std / prior).square()
        return 0.5 * (ratio + (mean / prior).square() - 1 - ratio.log()).item()

    assert divergence(config) < 0.02
    published = getattr(make_config("paper").model, part).sde
    assert divergence(published) > 0.1


@pytest.mark.parametrize("sde", RANGES.values(), ids=RANGES)
def test_scaled_inputs_have_one_spread_at_all_times(sde):
    generator = torch.Generator().manual_seed(0)
    data = 1.7 * torch.randn(20_000, generator=generator)
    for value in (0.01, 0.3, 0.7, 1.0):
        t = torch.full((20_000,), value)
        x = perturb(sde, data, t, torch.randn(20_000, generator=generator))
        assert abs((x * input_scale(sde, t, 1.7)).std() / 1.7 - 1) < 0.03
    assert (input_scale(sde, t, None) == 1).all()


def test_score_is_the_gradient_of_the_log_density():
    x0, t = torch.randn(6, 3), torch.rand(6)
    mean, std = VPSDE(0.1, 20).marginal_prob(x0, t)
    noise = torch.randn(6, 3)
    x = (mean + per_row(std, mean) * noise).requires_grad_()
    log_density = -0.5 * ((x - mean) / per_row(std, mean)).square().sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    assert torch.allclose(score_from_noise(noise, std), gradient, rtol=1e-4)
