"""Samplers against closed forms: a Gaussian's score makes each a linear recursion."""

import math

import pytest
import torch

from fixtures.gaussians import SDES, Schedule, gaussian_score, normals
from fixtures.seeds import mostly_slow
from msde.sampling import SAMPLERS, denoise, karras_times, uniform_times
from msde.sampling.samplers import predictor_corrector
from msde.sampling.steps import ancestral_step, fixed_langevin_step

MEAN = 1.5
DETERMINISTIC = ("heun", "adaptive", "dpm_solver_2m")
# The number of draws, of the number of steps, of samplers that are linear in their noise.
DRAWS = {
    "euler_maruyama": lambda steps: steps,
    "reverse_diffusion": lambda steps: steps,
    "ancestral": lambda steps: steps,
    "ancestral_vp": lambda steps: steps,
    "annealed_langevin": lambda steps: 5 * (steps + 1),
    "stochastic_heun": lambda steps: steps,
} | dict.fromkeys(DETERMINISTIC, lambda steps: 0)

kinds = pytest.mark.parametrize("kind", SDES)
spreads = pytest.mark.parametrize("spread", [0.1, 1.0])


def response(sampler, kind, spread, times, draws, **options):
    """Return factor and offset of x and the noise's factors, of a sampler linear in both.

    Row 0 starts at 0, row 1 at 1000; row 2 + k starts at 0 and gets one unit of noise in draw k.
    """
    x = torch.zeros(2 + draws, dtype=torch.float64)
    x[1] = 1000

    def noise(k):
        unit = torch.zeros(2 + draws, dtype=torch.float64)
        unit[2 + k] = 1
        return unit

    score = gaussian_score(kind, MEAN, spread)
    out = sampler(score, SDES[kind], x, times, noise, None, **options)
    return (out[1] - out[0]).item() / 1000, out[0].item(), out[2:] - out[0]


def moments(found, mean, variance):
    """Return mean and variance at the end from those at the start."""
    factor, offset, noise = found
    return factor * mean + offset, factor**2 * variance + noise.square().sum().item()


class Recursion:
    """Mean and variance of the same samplers, step by step with floats."""

    def __init__(self, kind, spread, times):
        self.at, self.spread, self.times = Schedule(kind), spread, times.tolist()
        self.pairs = list(zip(self.times, self.times[1:], strict=False))

    def score(self, t):
        """Return k and b of score = k x + b."""
        alpha = self.at.alpha(t)
        variance = alpha**2 * self.spread**2 + self.at.std(t) ** 2
        return -1 / variance, alpha * MEAN / variance

    def forward(self, t, s):
        """Return a and v of x_t = a x_s + sqrt(v) z."""
        a = self.at.alpha(t) / self.at.alpha(s)
        return a, self.at.std(t) ** 2 - a**2 * self.at.std(s) ** 2

    def euler_maruyama(self):
        for t, s in self.pairs:
            (k, b), f, g, dt = self.score(t), self.at.f(t), self.at.g(t), t - s
            yield 1 - f * dt + g**2 * dt * k, g**2 * dt * b, g**2 * dt

    def reverse_diffusion(self):
        for t, s in self.pairs:
            (k, b), (a, v) = self.score(t), self.forward(t, s)
            yield 2 - a + v * k, v * b, v

    def ancestral(self):
        for t, s in self.pairs:
            (k, b), (a, v), at = self.score(t), self.forward(t, s), self.at
            # Bayes: x_t = a x_s + sqrt(v) z and x_s = alpha_s x_0 + std_s z, at Tweedie's x_0.
            of_x, of_x0 = a * at.std(s) ** 2 / at.std(t) ** 2, at.alpha(s) * v / at.std(t) ** 2
            x0_x, x0_1 = (1 + at.std(t) ** 2 * k) / at.alpha(t), at.std(t) ** 2 * b / at.alpha(t)
            yield of_x + of_x0 * x0_x, of_x0 * x0_1, v * at.std(s) ** 2 / at.std(t) ** 2

    def ancestral_vp(self):
        for (t, s), (factor, offset, _) in zip(self.pairs, self.ancestral(), strict=True):
            yield factor, offset, self.forward(t, s)[1]

    def annealed_langevin(self):
        for before, t in zip([self.times[0], *self.times], self.times, strict=False):
            (k, b), step = self.score(t), 0.2 * self.at.std(t) ** 2
            yield self.at.alpha(t) / self.at.alpha(before), 0.0, 0.0
            for _ in range(5):
                yield 1 + step / 2 * k, step / 2 * b, step

    def stochastic_heun(self, churn=20.0):
        growth = 1 + min(churn / len(self.pairs), math.sqrt(2) - 1)
        for t, s in self.pairs:
            low, end = self.at.sigma(t), self.at.sigma(s)
            high = min(low * growth, self.at.sigma(1.0))
            # y - MEAN has the slope sigma / (spread^2 + sigma^2) (y - MEAN).
            first, second = (sigma / (self.spread**2 + sigma**2) for sigma in (high, end))
            step = end - high
            factor = 1 + step / 2 * (first + second * (1 + step * first))
            alpha_t, alpha_s = self.at.alpha(t), self.at.alpha(s)
            offset = alpha_s * MEAN * (1 - factor)
            yield factor * alpha_s / alpha_t, offset, (alpha_s * factor) ** 2 * (high**2 - low**2)

    def corrected(self, snr=0.16):
        for step, (_, s) in zip(self.ancestral(), self.pairs, strict=True):
            (k, b), size = self.score(s), 2 * snr**2 * self.at.std(s) ** 2
            yield step
            yield 1 + size * k, size * b, 2 * size

    def heun(self):
        return self.stochastic_heun(churn=0.0)

    def dpm_solver_2m(self):
        factor, before = 1.0, None  # of y - MEAN since the start
        for i, (t, s) in enumerate(self.pairs):
            ratio = self.at.sigma(s) / self.at.sigma(t)
            now = self.spread**2 / (self.spread**2 + self.at.sigma(t) ** 2) * factor
            used = now
            if i:
                r = math.log(self.at.sigma(self.times[i - 1]) / self.at.sigma(t)) / -math.log(ratio)
                used = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
            before, factor = now, ratio * factor + (1 - ratio) * used
        yield from self._whole(factor)

    def adaptive(self):
        sigmas = self.at.sigma(self.times[0]), self.at.sigma(self.times[-1])
        start, end = (math.hypot(self.spread, sigma) for sigma in sigmas)
        yield from self._whole(end / start)

    def _whole(self, factor):
        alpha_t, alpha_s = self.at.alpha(self.times[0]), self.at.alpha(self.times[-1])
        yield factor * alpha_s / alpha_t, alpha_s * MEAN * (1 - factor), 0.0

    def moments(self, name, mean, variance):
        for factor, offset, added in getattr(self, name)():
            mean, variance = factor * mean + offset, factor**2 * variance + added
        return mean, variance


def test_every_sampler_is_compared_with_a_recursion():
    assert set(SAMPLERS) == set(DRAWS) | {"predictor_corrector"}


@kinds
@spreads
@pytest.mark.parametrize("steps", mostly_slow([7, 40], [7]))
@pytest.mark.parametrize("name", DRAWS)
def test_mean_and_variance_follow_the_recursion_of_the_sampler(name, kind, spread, steps):
    prior = Schedule(kind).prior_std
    options = {"tolerance": 1e-9} if name == "adaptive" else {}
    grids = [karras_times(SDES[kind], steps), uniform_times(steps, last=0.01)]
    if name == "adaptive":  # looks at the ends only
        grids = grids[:1]
    for times in grids:
        found = response(SAMPLERS[name], kind, spread, times, DRAWS[name](steps), **options)
        mean, variance = moments(found, 0.0, prior**2)
        expected = Recursion(kind, spread, times).moments(name, 0.0, prior**2)
        assert mean == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
        assert variance == pytest.approx(expected[1], rel=1e-6)


@kinds
@spreads
@pytest.mark.parametrize("name", ["euler_maruyama", "ancestral", "stochastic_heun"])
def test_samples_have_the_moments_of_the_recursion(name, kind, spread):
    """The same with normals instead of units of noise."""
    times, rows = karras_times(SDES[kind], 12), 100_000
    noise = normals((rows,), seed=1)
    x = SDES[kind].prior_sampling(noise(999))
    out = SAMPLERS[name](gaussian_score(kind, MEAN, spread), SDES[kind], x, times, noise)
    mean, variance = Recursion(kind, spread, times).moments(
        name, 0.0, Schedule(kind).prior_std ** 2
    )
    assert abs(out.mean() - mean) < 4.5 * math.sqrt(variance / rows)
    assert abs(out.var() / variance - 1) < 4.5 * math.sqrt(2 / rows)


@kinds
@spreads
def test_predictor_corrector_follows_its_recursion(kind, spread):
    """In samples of many numbers the norms in Langevin's step size are their expectations."""
    samples, width, snr = 24, 8192, 0.16
    times = karras_times(SDES[kind], 15)
    noise = normals((samples, width), seed=2)
    score = gaussian_score(kind, MEAN, spread)
    x = SDES[kind].prior_sampling(noise(999))
    out = predictor_corrector(score, SDES[kind], x, times, noise, corrections=2, snr=snr)
    steps = Recursion(kind, spread, times)
    mean, variance = 0.0, Schedule(kind).prior_std ** 2
    for (factor, offset, added), (_, s) in zip(steps.reverse_diffusion(), steps.pairs, strict=True):
        mean, variance = factor * mean + offset, factor**2 * variance + added
        for _ in range(2):
            k, b = steps.score(s)
            step = min(2 * snr**2 / (k**2 * variance + (k * mean + b) ** 2), steps.at.std(s) ** 2)
            mean, variance = (1 + step * k) * mean + step * b, (1 + step * k) ** 2 * variance
            variance += 2 * step
    assert abs(out.mean() - mean) < 5 * math.sqrt(variance / out.numel())
    assert abs(out.var() / variance - 1) < 5 * math.sqrt(2 / out.numel())


@kinds
@spreads
def test_predictor_corrector_with_fixed_steps_follows_its_recursion(kind, spread):
    times, prior = karras_times(SDES[kind], 15), Schedule(kind).prior_std
    parts = {"predictor": ancestral_step, "corrector": fixed_langevin_step}
    found = response(predictor_corrector, kind, spread, times, 30, **parts)
    expected = Recursion(kind, spread, times).moments("corrected", 0.0, prior**2)
    assert moments(found, 0.0, prior**2) == pytest.approx(expected, rel=1e-6)


@kinds
def test_predictor_corrector_composes_the_functions_it_is_given(kind):
    def predictor(score, sde, x, t, s, noise):
        return 0.5 * x + noise

    def corrector(score, sde, x, t, noise, snr, batch):
        return 0.5 * x + snr * noise

    options = {"predictor": predictor, "corrector": corrector, "corrections": 2, "snr": 3.0}
    found = response(predictor_corrector, kind, 1.0, uniform_times(2), 6, **options)
    noise = [0.5**5, 3 * 0.5**4, 3 * 0.5**3, 0.5**2, 3 * 0.5, 3.0]
    assert found[:2] == (0.5**6, 0.0) and found[2].tolist() == noise


def error_of_the_map(name, kind, spread, steps):
    """The relative error of the factor of x, whose exact value is the ratio of both spreads."""
    times = karras_times(SDES[kind], steps)
    factor, _, _ = response(SAMPLERS[name], kind, spread, times, 0)
    at, (first, last) = Schedule(kind), (times[0].item(), times[-1].item())
    start, end = (math.hypot(at.alpha(t) * spread, at.std(t)) for t in (first, last))
    return factor / (end / start) - 1


def error_of_the_variance(name, kind, spread, steps, **options):
    """The relative error of the variance at the end, from the exact moments at the start."""
    times = karras_times(SDES[kind], steps)
    if name != "stochastic_heun":  # at the end the errors of an earlier and a later time may cancel
        times = uniform_times(steps, last=0.5)
    found = response(SAMPLERS[name], kind, spread, times, DRAWS[name](steps), **options)
    at, (first, last) = Schedule(kind), (times[0].item(), times[-1].item())
    start, end = (math.hypot(at.alpha(t) * spread, at.std(t)) ** 2 for t in (first, last))
    return moments(found, at.alpha(first) * MEAN, start)[1] / end - 1


@kinds
@spreads
@pytest.mark.parametrize("name", ["heun", "dpm_solver_2m"])
def test_solvers_of_the_ode_converge_with_order_two(name, kind, spread):
    errors = [error_of_the_map(name, kind, spread, steps) for steps in (160, 320)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.2
    assert abs(errors[1]) < 1e-2


@kinds
@spreads
@pytest.mark.parametrize(
    "name", ["euler_maruyama", "reverse_diffusion", "ancestral", "ancestral_vp"]
)
def test_solvers_of_the_sde_converge_with_order_one(name, kind, spread):
    errors = [error_of_the_variance(name, kind, spread, steps) for steps in (200, 400)]
    if (name, kind, spread) == ("ancestral_vp", "VP", 1.0):  # Ho et al. 2020: exact at unit spread
        assert max(abs(error) for error in errors) < 1e-10
        return
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.15
    assert abs(errors[1]) < 0.05


@kinds
@spreads
def test_stochastic_heun_converges_with_order_two(kind, spread):
    errors = [error_of_the_variance("stochastic_heun", kind, spread, n) for n in (100, 200)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.25
    assert abs(errors[1]) < 1e-2


@kinds
@spreads
def test_denoise_returns_the_posterior_mean(kind, spread):
    t, at = torch.tensor(0.4, dtype=torch.float64), Schedule(kind)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    y, sigma = x / at.alpha(0.4), at.sigma(0.4)
    expected = (y * spread**2 + MEAN * sigma**2) / (spread**2 + sigma**2)
    found = denoise(gaussian_score(kind, MEAN, spread), SDES[kind], x, t)
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_keep_dtype_and_shape_and_make_no_graph(name):
    weight = torch.ones((), requires_grad=True)
    x = torch.randn(5, 3, 2)
    times = karras_times(SDES["VP"], 4)
    out = SAMPLERS[name](
        lambda x, t: -weight * x, SDES["VP"], x, times, noise=lambda k: torch.randn(x.shape)
    )
    assert out.dtype == torch.float32 and out.shape == x.shape and not out.requires_grad
