"""Samplers: from x at the first of some times to x at the last, a function for each method.

All take `(score, sde, x, times, noise, batch)` and return x at times[-1], like x; `denoise` then
gives x_0. None draws a random number.

Args:
    score: score(x, t) returns the score of p_t, like x; t is 0-dim, with the dtype of `times`.
    x: (rows, ...) at times[0]: `sde.prior_sampling` of standard normals for times[0] = 1. Fields of
        several shapes can be flattened into one x, with `batch` to say what belongs together.
    times: (steps + 1,) descending within (0, 1]; see `karras_times` and `uniform_times`.
    noise: noise(k) returns the standard normals of draw k = 0, 1, ..., like x. Methods for the ODE
        ignore it. Where positions are centred, noise has to be, too.
    batch: (rows,) sample of each row, from 0; None: each row is a sample. Only methods that need
        the norm of a sample look at it.

Errors are those of `intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from msde.model.sde import SDE
from msde.sampling.schedule import intervals, scales, sigma_of
from msde.sampling.steps import (
    Corrector,
    Predictor,
    Score,
    ancestral_step,
    ancestral_vp_step,
    euler_maruyama_step,
    heun_step,
    langevin_step,
    reverse_diffusion_step,
    sample_sums,
)

Noise = Callable[[int], Tensor]


@torch.no_grad()
def denoise(score: Score, sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """Return the mean of x_0 given x_t = x by Tweedie's formula (Efron 2011), like x."""
    alpha, std = scales(sde, t)
    return (x + std.square() * score(x, t)) / alpha


def _stepped(predictor: Predictor, what: str) -> Callable[..., Tensor]:
    """Return the sampler that steps a predictor through all times; step k uses draw k."""

    @torch.no_grad()
    def sampler(
        score: Score, sde: SDE, x: Tensor, times: Tensor, noise: Noise, batch: Tensor | None = None
    ) -> Tensor:
        for k, (t, s) in enumerate(intervals(times)):
            x = predictor(score, sde, x, t, s, noise(k))
        return x

    sampler.__name__ = sampler.__qualname__ = predictor.__name__.removesuffix("_step")
    sampler.__doc__ = f"Sample {what}; one draw a step."
    return sampler


euler_maruyama = _stepped(
    euler_maruyama_step, "by Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6)"
)
reverse_diffusion = _stepped(
    reverse_diffusion_step, "by reverse diffusion (Song et al. 2021, eq. 46)"
)
ancestral = _stepped(ancestral_step, "ancestrally, in the form for VE (Song et al. 2021, eq. 47)")
ancestral_vp = _stepped(
    ancestral_vp_step, "ancestrally, in the form for VP (Song et al. 2021, eq. 4)"
)


@torch.no_grad()
def annealed_langevin(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    batch: Tensor | None = None,
    *,
    step: float = 0.2,
    repeats: int = 5,
) -> Tensor:
    """Sample by annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

    At each of the times, the first and the last included, x moves `repeats` times by half a step
    along the score plus noise of one step. Each move is a draw. From one time to the next x / alpha
    is kept, which makes VP and sub-VP the same as the paper's VE.

    Args:
        step: step size in units of std(t)^2. The paper's is 0.2, with 100 repeats.
        repeats: moves at each time.
    """
    intervals(times)  # raises the error
    alpha, _ = scales(sde, times[0])
    for level, t in enumerate(times):
        x, (alpha, std) = x / alpha, scales(sde, t)
        x, size = alpha * x, step * std.square()
        for k in range(level * repeats, (level + 1) * repeats):
            x = x + 0.5 * size * score(x, t) + size.sqrt() * noise(k)
    return x


@torch.no_grad()
def predictor_corrector(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    batch: Tensor | None = None,
    *,
    predictor: Predictor = reverse_diffusion_step,
    corrector: Corrector = langevin_step,
    corrections: int = 1,
    snr: float = 0.16,
) -> Tensor:
    """Sample by a predictor and a corrector in turn (Song et al. 2021, algorithm 1).

    Each step makes one draw for the predictor, then one for each correction at the new time.

    Args:
        corrections: steps of the corrector after each step of the predictor.
        snr: the signal-to-noise ratio r of the corrector. The paper's is 0.16 for VE.
    """
    for step, (t, s) in enumerate(intervals(times)):
        k = step * (1 + corrections)
        x = predictor(score, sde, x, t, s, noise(k))
        for correction in range(1, 1 + corrections):
            x = corrector(score, sde, x, s, noise(k + correction), snr, batch)
    return x


@torch.no_grad()
def heun(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    batch: Tensor | None = None,
) -> Tensor:
    """Solve the probability-flow ODE by Heun's method (Karras et al. 2022, algorithm 1).

    Two scores a step, second order.
    """
    for t, s in intervals(times):
        x = heun_step(score, sde, x, t, s)
    return x


@torch.no_grad()
def stochastic_heun(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    batch: Tensor | None = None,
    *,
    churn: float = 20.0,
) -> Tensor:
    """Sample by Heun's method with noise added before each step (Karras et al. 2022, algorithm 2).

    sigma is std / alpha. It is never raised above that of t = 1, beyond which no network was
    trained: the first step from t = 1 adds no noise. Step k uses draw k, if it adds noise.

    Args:
        churn: S_churn; a step raises sigma by the factor 1 + min(churn / steps, sqrt(2) - 1).
            The paper's S_tmin, S_tmax and S_noise are 0, infinite and 1.
    """
    pairs = intervals(times)
    growth = 1 + min(churn / len(pairs), math.sqrt(2) - 1)
    top = sigma_of(sde, torch.ones_like(times[0]))
    for k, (t, s) in enumerate(pairs):
        sigma = sigma_of(sde, t)
        raised = torch.minimum(growth * sigma, top)
        if raised > sigma:
            added = (raised.square() - sigma.square()).sqrt()
            y = x / scales(sde, t)[0] + added * noise(k)
            t = sde.time_of(raised).clamp(max=1)
            x = scales(sde, t)[0] * y
        x = heun_step(score, sde, x, t, s)
    return x


@torch.no_grad()
def adaptive(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    batch: Tensor | None = None,
    *,
    tolerance: float = 1e-5,
) -> Tensor:
    """Solve the probability-flow ODE with adaptive steps by dopri5 of torchdiffeq.

    Song et al. 2021, section 4.3, here in log sigma for w = x / sqrt(alpha^2 + std^2), whose size
    changes little: errors relative to each number would depend on the orientation. Of `times` only
    the first and the last count. All samples share the steps, which are chosen so that the sample
    with the largest error meets the tolerance: batch-mates change a sample by about that much.

    Args:
        tolerance: root mean square of a sample's error in a step, in the unit of x.
    """
    from torchdiffeq import odeint  # imports scipy's integrators, which takes a second

    intervals(times)  # raises the error
    start, end = times[0], times[-1]
    counts = sample_sums(torch.ones_like(x), batch).clamp(min=1)  # (num_samples,)

    def size(t: Tensor) -> Tensor:
        return torch.hypot(*scales(sde, t))

    def field(log_sigma: Tensor, w: Tensor) -> Tensor:
        t = sde.time_of(log_sigma.to(times).exp()).clamp(end, start)
        _, std = scales(sde, t)
        share = std / size(t)
        return -share * (share * w + std * score(size(t) * w, t))

    def norm(error: Tensor) -> Tensor:
        return (sample_sums(error.square(), batch) / counts).max().sqrt()

    grid = torch.stack([sigma_of(sde, start), sigma_of(sde, end)]).log().to(x.device)  # (2,)
    out = odeint(field, x / size(start), grid, rtol=0.0, atol=tolerance, options={"norm": norm})
    return size(end) * out[-1]


@torch.no_grad()
def dpm_solver_2m(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    batch: Tensor | None = None,
) -> Tensor:
    """Solve the probability-flow ODE by DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2).

    One score a step, second order. The first step is of first order.
    """
    last: tuple[Tensor, Tensor] | None = None
    for t, s in intervals(times):
        (alpha_t, std_t), (alpha_s, std_s) = scales(sde, t), scales(sde, s)
        width = ((alpha_s * std_t) / (alpha_t * std_s)).log()  # of log(alpha / std)
        x_0 = denoise(score, sde, x, t)
        ahead = x_0
        if last is not None:
            ahead = x_0 + 0.5 * width / last[1] * (x_0 - last[0])
        x = std_s / std_t * x - alpha_s * torch.expm1(-width) * ahead
        last = x_0, width
    return x


# The name on a command line, and the sampler; all can be called with the same arguments.
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ancestral_vp": ancestral_vp,
    "annealed_langevin": annealed_langevin,
    "predictor_corrector": predictor_corrector,
    "heun": heun,
    "stochastic_heun": stochastic_heun,
    "adaptive": adaptive,
    "dpm_solver_2m": dpm_solver_2m,
}
