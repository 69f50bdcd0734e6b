import math

import pytest
import torch

from msde.sde import VESDE, VPSDE, per_row, score_from_noise

SDES = {
    "VE": VESDE(0.2, 1.0),
    "VE wide": VESDE(0.1, 10.0),
    "VP": VPSDE(0.2, 1.0),
    "VP wide": VPSDE(0.1, 20.0),
}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("shape", [(64, 3), (64,), (64, 5, 5)])
def test_both_layouts(sde, shape):
    x, t = torch.randn(shape), torch.rand(64)
    mean, std = sde.marginal_prob(x, t)
    drift, diffusion = sde.sde(x, t)
    assert mean.shape == drift.shape == x.shape
    assert std.shape == diffusion.shape == t.shape
    row = 7
    one_mean, one_std = sde.marginal_prob(x[row : row + 1], t[row : row + 1])
    assert torch.allclose(mean[row], one_mean[0]) and torch.allclose(std[row], one_std[0])


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
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


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_moments_by_simulation(sde):
    generator = torch.Generator().manual_seed(0)
    num_steps, paths = 400, 20_000
    x = torch.full((paths,), 1.5)
    if isinstance(sde, VESDE):
        x = x + sde.sigma_min * torch.randn(paths, generator=generator)
    for k in range(num_steps):
        drift, diffusion = sde.sde(x, torch.full((paths,), (k + 0.5) / num_steps))
        noise = torch.randn(paths, generator=generator)
        x = x + drift / num_steps + diffusion * noise / math.sqrt(num_steps)
    mean, std = sde.marginal_prob(torch.tensor([1.5]), torch.tensor([1.0]))
    assert abs(x.mean() - mean) < 0.03 * std + 0.01
    assert abs(x.std() / std - 1) < 0.02


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_reverse_sampling_of_a_gaussian_recovers_it(sde):
    """Data N(1, 0.5^2): the exact score is known, so the reverse SDE must return to the data."""
    generator = torch.Generator().manual_seed(0)
    num_steps, paths = 1000, 20_000

    def score(x, t):
        mean, std = sde.marginal_prob(torch.ones_like(x), t)
        shrink = sde.marginal_prob(torch.ones_like(x), t)[0]
        variance = (0.5 * shrink) ** 2 + std**2
        return (mean - x) / variance

    t = torch.ones(paths)
    mean, std = sde.marginal_prob(torch.ones(paths), t)
    spread = torch.sqrt((0.5 * mean) ** 2 + std**2)
    x = mean + spread * torch.randn(paths, generator=generator)
    for k in range(num_steps, 0, -1):
        t = torch.full((paths,), k / num_steps)
        drift, diffusion = sde.sde(x, t)
        noise = torch.randn(paths, generator=generator)
        x = x - (drift - diffusion**2 * score(x, t)) / num_steps
        x = x + diffusion * noise / math.sqrt(num_steps)
    start = sde.sigma_min if isinstance(sde, VESDE) else 0.0
    assert abs(x.mean() - 1) < 0.03
    assert abs(x.std() / math.hypot(0.5, start) - 1) < 0.03


def test_priors():
    noise = torch.randn(100)
    assert torch.equal(VESDE(0.1, 10).prior_sampling(noise), 10 * noise)
    assert torch.equal(VPSDE(0.1, 20).prior_sampling(noise), noise)


def test_score_is_the_gradient_of_the_log_density():
    x0, t = torch.randn(6, 3), torch.rand(6)
    mean, std = VPSDE(0.1, 20).marginal_prob(x0, t)
    noise = torch.randn(6, 3)
    x = (mean + per_row(std, mean) * noise).requires_grad_()
    log_density = -0.5 * ((x - mean) / per_row(std, mean)).square().sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    assert torch.allclose(score_from_noise(noise, std), gradient, rtol=1e-4)
