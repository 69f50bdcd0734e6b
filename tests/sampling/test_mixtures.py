"""Each sampler reproduces each of three 2D Gaussian mixtures, and none of the other two."""

import pytest
import torch

from fixtures.gaussians import SDES, Mixture, normals
from fixtures.seeds import mostly_slow
from msde.sampling import SAMPLERS, denoise, karras_times
from msde.sampling.steps import fixed_langevin_step

MIXTURES = (
    Mixture([0.2, 0.8], [[-2.0, 0.0], [2.0, 0.0]], [0.3, 0.5]),
    Mixture([0.6, 0.4], [[0.0, -2.0], [0.0, 2.0]], [0.4, 0.4]),
    Mixture([0.3, 0.3, 0.4], [[0.0, 0.0], [2.0, 2.0], [-2.0, 2.0]], [0.2, 0.6, 0.3]),
)
ROWS = 2000
# The steps, 100 otherwise, and other options.
STEPS = {"annealed_langevin": 50, "adaptive": 1, "heun": 40, "stochastic_heun": 40}
OPTIONS = {
    "annealed_langevin": {"repeats": 20},
    # Norms over two numbers bias the other corrector.
    "predictor_corrector": {"corrector": fixed_langevin_step},
}


def mean_distance(a, b):
    return torch.cdist(a, b).mean()


@pytest.fixture(scope="module")
def references():
    """Samples of each mixture, with their own mean distance."""
    samples = [mixture.sample(ROWS, seed) for seed, mixture in enumerate(MIXTURES)]
    return [(sample, mean_distance(sample, sample)) for sample in samples]


@pytest.mark.parametrize("kind", mostly_slow(SDES, ["VP"]))
@pytest.mark.parametrize("name", mostly_slow(SAMPLERS, SAMPLERS.keys() - {"annealed_langevin"}))
def test_samples_are_those_of_their_own_mixture(name, kind, references):
    """By the energy distance (Szekely & Rizzo 2013), and by the weights of the components."""
    sde, noise = SDES[kind], normals((ROWS, 2), seed=7)
    options = OPTIONS.get(name, {})
    times = karras_times(sde, STEPS.get(name, 100), last=0.01)
    for own, mixture in enumerate(MIXTURES):
        score = mixture.score(kind)
        x = SAMPLERS[name](score, sde, sde.prior_sampling(noise(999)), times, noise, **options)
        x = denoise(score, sde, x, times[-1])
        inner = mean_distance(x, x)
        energy = [2 * mean_distance(x, y) - inner - self for y, self in references]
        assert energy[own] < 0.05
        assert all(energy[own] < 0.1 * e for other, e in enumerate(energy) if other != own)
        found = mixture.shares(x).argmax(-1).bincount(minlength=len(mixture.weights)) / ROWS
        error = (mixture.weights * (1 - mixture.weights) / ROWS).sqrt()
        assert ((found - mixture.weights).abs() < 4 * error + 0.01).all(), found
