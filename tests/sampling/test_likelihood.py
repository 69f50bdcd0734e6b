"""Log-likelihoods against those of Gaussians, of all numbers and of centred positions."""

import math

import pytest
import torch

from fixtures.gaussians import SDES, Schedule, gaussian_score, normals
from fixtures.seeds import mostly_slow
from msde.model.geometry import centre
from msde.sampling import (
    adaptive_log_likelihood,
    karras_times,
    log_likelihood,
    orthogonal_probes,
)

# Sub-VP differs in the schedule only, which the samplers test.
kinds = pytest.mark.parametrize(
    "kind", ["VE", "VP", pytest.param("sub-VP", marks=pytest.mark.slow)]
)
spreads = pytest.mark.parametrize("spread", [0.1, 1.0])

SIZES = torch.tensor([1, 2, 5, 9])
BATCH = torch.arange(4).repeat_interleave(SIZES)  # (rows,)
DIMS = 3 * (SIZES - 1)
ROWS = len(BATCH)


def centred(rows):
    return centre(rows, BATCH, SIZES)


def signs(shape, seed=0):
    return normals(shape, seed)(0).sign()


def basis():
    """The 3 (n - 1) directions of each molecule, all molecules at once, as probes.

    A molecule's probes are an orthonormal basis times sqrt(its own number of directions); those of
    smaller molecules are padded with zeros, so the common factor is that of the number of probes.
    """
    probes = torch.zeros(3 * (int(SIZES.max()) - 1), ROWS, 3, dtype=torch.float64)
    for molecule, size in enumerate(SIZES.tolist()):
        projector = torch.eye(size).double() - 1 / size
        vectors = torch.linalg.eigh(projector)[1][:, 1:]  # (size, size - 1)
        for i in range(size - 1):
            for axis in range(3):
                probes[3 * i + axis, molecule == BATCH, axis] = vectors[:, i]
    return probes * math.sqrt(len(probes))


def gaussian_log_density(x, mean, spread, kind, times, sums, dims):
    """Return the log-density at the last time, and what the prior in place of p_1 makes of it.

    The ODE takes x to x_1, whose distance from its mean has grown as the standard deviation.
    """
    at, (first, last) = Schedule(kind), (times[0].item(), times[-1].item())
    start, end = (math.hypot(at.alpha(t) * spread, at.std(t)) for t in (first, last))
    from_mean = x - at.alpha(last) * mean
    x_1 = at.alpha(first) * mean + start / end * from_mean

    def log_density(x, std):
        return -0.5 * sums((x / std).square()) - dims * math.log(math.sqrt(2 * math.pi) * std)

    exact = log_density(from_mean, end)
    at_1 = log_density(x_1 - at.alpha(first) * mean, start)
    return exact, exact + log_density(x_1, at.prior_std) - at_1


@kinds
@spreads
@pytest.mark.parametrize("function", [log_likelihood, adaptive_log_likelihood])
def test_the_likelihood_of_a_gaussian_is_exact(kind, spread, function):
    x = 1.5 + spread * normals((20, 6), seed=1)(0)
    times = karras_times(SDES[kind], 60)
    score = gaussian_score(kind, 1.5, spread)
    found = function(score, SDES[kind], x, times, signs((1, 20, 6)))
    exact, with_prior = gaussian_log_density(
        x, 1.5, spread, kind, times, lambda values: values.sum(-1), 6
    )
    assert found.shape == (20,)
    assert abs(found.mean() / exact.mean() - 1) < 0.01
    assert (found - with_prior).abs().max() < 5e-3


@kinds
@pytest.mark.parametrize("spread", mostly_slow([0.1, 1.0], [0.1]))
def test_the_likelihood_of_centred_positions_has_three_dimensions_less(kind, spread):
    mean = centred(2 * normals((ROWS, 3), seed=2)(0))
    x = centred(mean + spread * normals((ROWS, 3), seed=3)(0))
    times = karras_times(SDES[kind], 40)
    score = gaussian_score(kind, mean, spread)

    def sums(values):
        return torch.zeros(4).double().index_add(0, BATCH, values.sum(-1))

    exact, with_prior = gaussian_log_density(x, mean, spread, kind, times, sums, DIMS)
    options = {"dims": DIMS, "project": centred}
    one = orthogonal_probes(normals((1, ROWS, 3), seed=4)(0), BATCH, **options)
    for probes in (basis(), one):
        found = log_likelihood(score, SDES[kind], x, times, probes, BATCH, **options)
        assert found[0] == 0  # of one atom: there is nothing to know
        assert abs(found.sum() / exact.sum() - 1) < 0.01
        assert torch.allclose(found, with_prior, rtol=0, atol=1e-2)
    # Signs give it only on average. |P v|^2 has a variance of 2 an axis at most.
    many = signs((100, ROWS, 3), seed=5)
    found = log_likelihood(score, SDES[kind], x, times[::2], many, BATCH, **options)
    growth = math.log(math.hypot(1, Schedule(kind).sigma(1.0) / spread))
    assert ((found - with_prior).abs() < 4 * growth * math.sqrt(6 / 100)).all()


@kinds
def test_a_projection_keeps_scores_out_that_leave_the_subspace(kind):
    """A drift of all atoms together changes nothing."""
    x = centred(normals((ROWS, 3), seed=6)(0))
    options = {"dims": DIMS, "project": centred}
    times, probes = karras_times(SDES[kind], 10), basis()
    plain = gaussian_score(kind, 0.0, 1.0)
    found = [
        log_likelihood(score, SDES[kind], x, times, probes, BATCH, **options)
        for score in (plain, lambda x, t: plain(x, t) + 7 + x.mean())
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-9)


def correlated(kind, covariance):
    """The score of data N(0, covariance) in each row."""
    values, vectors = torch.linalg.eigh(covariance)
    at = Schedule(kind)

    def score(x, t):
        alpha, std = at.alpha(t.item()), at.std(t.item())
        return -(x @ vectors) / (alpha**2 * values + std**2) @ vectors.T

    return score


@kinds
def test_hutchinsons_estimator_is_unbiased(kind):
    """Correlated data: an orthonormal basis gives the exact value, random probes its mean."""
    width, rows = 4, 3
    matrix = normals((width, width), seed=7)(0)
    covariance = matrix @ matrix.T / width + 0.05 * torch.eye(width)
    x = normals((rows, width), seed=8)(0) @ torch.linalg.cholesky(covariance).T
    times = karras_times(SDES[kind], 60)
    score = correlated(kind, covariance)
    unit = torch.eye(width).double()[:, None].expand(width, rows, width) * math.sqrt(width)
    at, end = Schedule(kind), times[-1].item()
    cov = at.alpha(end) ** 2 * covariance + at.std(end) ** 2 * torch.eye(width)
    zero = torch.zeros(width, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(zero, cov).log_prob(x)
    exact = log_likelihood(score, SDES[kind], x, times, unit)
    assert torch.allclose(exact, expected, rtol=0.01)
    # A probe for each copy of x.
    copies, draws = x.repeat(400, 1), normals((1, 400 * rows, width), seed=9)(0)
    reference = log_likelihood(score, SDES[kind], x, times[::6], unit)
    for probes in (draws, draws.sign(), orthogonal_probes(draws)):
        each = log_likelihood(score, SDES[kind], copies, times[::6], probes).view(400, rows)
        error = each.std(dim=0) / math.sqrt(400)  # (rows,)
        assert ((each.mean(dim=0) - reference).abs() < 4 * error).all()
        together = log_likelihood(
            score, SDES[kind], x, times[::6], probes.view(400, rows, width)[:10]
        )
        assert torch.allclose(together, each[:10].mean(dim=0), rtol=1e-9)
    for num in (width, width + 3):
        probes = orthogonal_probes(normals((num, rows, width), seed=10)(0))
        assert torch.allclose(log_likelihood(score, SDES[kind], x, times[::6], probes), reference)


def test_orthogonal_probes_have_less_variance_than_independent_ones():
    num, samples, width = 3, 1000, 4
    matrix = normals((width, width), seed=13)(0)
    draws = normals((num, samples, width), seed=14)(0)
    together = orthogonal_probes(draws)
    apart = torch.cat([orthogonal_probes(draw[None]) for draw in draws])
    of_each = [torch.einsum("psi,ij,psj->s", v, matrix, v) / num for v in (together, apart)]
    assert abs(of_each[0].mean() - matrix.trace()) < 4 * of_each[0].std() / math.sqrt(samples)
    ratio = of_each[0].var() / of_each[1].var()
    assert abs(ratio - (width - num) / (width - 1)) < 0.05


@pytest.mark.parametrize("kind", mostly_slow(SDES, ["VP"]))
def test_steps_are_of_fourth_order(kind):
    x = 1.5 + normals((4, 3), seed=10)(0)
    score, probes = gaussian_score(kind, 1.5, 1.0), signs((1, 4, 3))
    grids = [karras_times(SDES[kind], steps, last=0.01) for steps in (40, 80, 640)]
    values = [log_likelihood(score, SDES[kind], x, g, probes) for g in grids]
    errors = [(value - values[-1]).abs().max() for value in values[:2]]
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.35


@kinds
def test_a_likelihood_does_not_depend_on_batch_mates(kind):
    mean = centred(2 * normals((ROWS, 3), seed=11)(0))
    x, probes = centred(mean + normals((ROWS, 3), seed=12)(0)), basis()
    times = karras_times(SDES[kind], 10)
    score = gaussian_score(kind, mean, 1.0)
    options = {"dims": DIMS, "project": centred}
    together = log_likelihood(score, SDES[kind], x, times, probes, BATCH, **options)
    rows = BATCH == 2
    alone = log_likelihood(
        gaussian_score(kind, mean[rows], 1.0),
        SDES[kind],
        x[rows],
        times,
        probes[:, rows],
        torch.zeros(int(rows.sum()), dtype=torch.int64),
        dims=DIMS[2:3],
        project=lambda values: values - values.mean(dim=0),
    )
    assert torch.allclose(alone, together[2:3], rtol=1e-9)
