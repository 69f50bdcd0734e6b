"""Single steps of samplers: predictors from time t to s < t, correctors at one time.

x is (rows, ...). `score(x, t)` returns the score of p_t, like x, for a 0-dim t. `noise` holds
standard normals like x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msde import ops
from msde.model.sde import SDE, per_row
from msde.sampling.schedule import coefficients, scales, transition

# score(x, t): of x, (rows, ...), and t, 0-dim, both as in the sampler; like x.
Score = Callable[[Tensor, Tensor], Tensor]
# predictor(score, sde, x, t, s, noise) returns x at s.
Predictor = Callable[[Score, SDE, Tensor, Tensor, Tensor, Tensor], Tensor]
# corrector(score, sde, x, t, noise, snr, batch) returns x at t.
Corrector = Callable[[Score, SDE, Tensor, Tensor, Tensor, float, Tensor | None], Tensor]


def euler_maruyama_step(
    score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Step by Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6)."""
    f, g = coefficients(sde, t)
    drift = f * x - g.square() * score(x, t)
    return x - (t - s) * drift + g * (t - s).sqrt() * noise


def reverse_diffusion_step(
    score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Step by the discretised forward step in reverse (Song et al. 2021, eq. 46).

    The forward step from s to t is the exact one, N(a x, v). For VE and VP it is that of the paper,
    with v = sigma_t^2 - sigma_s^2 and v = beta_t = 1 - a^2; for sub-VP the paper uses Euler's.
    """
    a, v = transition(sde, t, s)
    return (2 - a) * x + v * score(x, t) + v.sqrt() * noise


def ancestral_step(
    score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Draw from p(x_s | x_t, x_0) at Tweedie's x_0 (Song et al. 2021, eq. 47: the form for VE).

    The same formula holds for VP, where it is that of Ho et al. 2020 with the smaller of their two
    variances, and for sub-VP.
    """
    a, v = transition(sde, t, s)
    (_, std_t), (_, std_s) = scales(sde, t), scales(sde, s)
    return (x + v * score(x, t)) / a + v.sqrt() * std_s / std_t * noise


def ancestral_vp_step(
    score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Draw with the variance v of the forward step (Song et al. 2021, eq. 4: the form for VP).

    This is Ho et al. 2020 with the larger of their two variances, beta. The mean is that of
    `ancestral_step`.
    """
    a, v = transition(sde, t, s)
    return (x + v * score(x, t)) / a + v.sqrt() * noise


def heun_step(score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Step by Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1).

    The ODE is that of y = x / alpha in sigma = std / alpha, dy / dsigma = -std score, which holds
    for every linear SDE.
    """
    (alpha_t, std_t), (alpha_s, std_s) = scales(sde, t), scales(sde, s)
    step = std_s / alpha_s - std_t / alpha_t
    y = x / alpha_t
    slope = -std_t * score(x, t)
    slope_s = -std_s * score(alpha_s * (y + step * slope), s)
    return alpha_s * (y + 0.5 * step * (slope + slope_s))


def sample_sums(values: Tensor, batch: Tensor | None) -> Tensor:
    """Sum all numbers of each sample, (num_samples,); without `batch` each row is a sample."""
    sums = values.reshape(len(values), -1).sum(dim=1)  # (rows,)
    if batch is None:
        return sums
    return ops.segment_sum(sums, batch, int(batch.max()) + 1)


def langevin_step(
    score: Score,
    sde: SDE,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    snr: float,
    batch: Tensor | None = None,
) -> Tensor:
    """Step by Langevin dynamics of p_t (Song et al. 2021, algorithms 4 and 5 without their alpha).

    The step size is 2 (snr |z| / |score|)^2. The norms are those of each sample alone, not means
    over the batch as in the paper's code. It is at most std^2: -log p_t has curvature of at most
    1 / std^2, so longer steps need not be stable, and a sample of few numbers meets small scores.
    As the step depends on x and the noise, samples of few numbers (one to three atoms) come out
    biased; `fixed_langevin_step` does not have this bias.
    """
    gradient = score(x, t)  # (rows, ...)
    size = sample_sums(gradient.square(), batch)  # (num_samples,)
    ratio = sample_sums(noise.square(), batch) / size.clamp(min=torch.finfo(size.dtype).tiny)
    limit = scales(sde, t)[1].square().to(ratio)
    step = torch.minimum(2 * snr**2 * ratio, limit)  # (num_samples,)
    step = per_row(step if batch is None else step.index_select(0, batch), x)  # (rows, 1, ...)
    return x + step * gradient + (2 * step).sqrt() * noise


def fixed_langevin_step(
    score: Score,
    sde: SDE,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    snr: float,
    batch: Tensor | None = None,
) -> Tensor:
    """Step by Langevin dynamics of p_t with step size 2 (snr std)^2 (Song & Ermon 2019)."""
    step = 2 * (snr * scales(sde, t)[1]).square()
    return x + step * score(x, t) + (2 * step).sqrt() * noise
