"""Log-likelihoods through the probability-flow ODE.

The density of y = x / alpha changes along dy / dlog(sigma) = -sigma std score by the divergence of
that field (Song et al. 2021, eq. 39, in the variables of `steps.heun_step`). Hutchinson's
estimator gives the divergence (Grathwohl et al. 2019): the mean of v . J v over probes v with
E[v v^T] = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from msde.model.sde import SDE
from msde.sampling.schedule import intervals, scales, sigma_of
from msde.sampling.steps import Score, sample_sums

# y, (rows, ...), and the integral of the divergence, (num_samples,).
State = tuple[Tensor, Tensor]
# field(log sigma, state) returns the derivatives of both.
Field = Callable[[Tensor, State], State]
Projection = Callable[[Tensor], Tensor]


def log_likelihood(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    probes: Tensor,
    batch: Tensor | None = None,
    *,
    dims: Tensor | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return the log-likelihood of each sample in nats, (num_samples,), with given steps.

    It is the density of x at times[-1], that of data with noise std(t) on them. At the first time
    the density is taken to be that of the prior, N(0, prior_std^2), so times[0] should be 1. What
    that leaves out is about `alpha |x_0| / prior_std` nats at t = 1, of either sign: 1.3 for 20
    atoms with a spread of 1.7 A and VE up to 10 A.

    Args:
        score: score(x, t), differentiable in x; no row may depend on those of other samples.
        x: (rows, ...) samples.
        times: (steps + 1,) descending within (0, 1], as for samplers.
        probes: (num_probes, rows, ...) normals or signs (Rademacher), or `orthogonal_probes`.
        batch: (rows,) sample of each row, from 0; None: each row is a sample.
        dims: (num_samples,) dimensions in which a sample lives, 3 (n - 1) for n centred atoms;
            None: all its numbers.
        project: the orthogonal projection of something like x to the subspace of these dimensions,
            which centres positions; None: there is none.
    """
    steps = [(sigma_of(sde, s).log(), sigma_of(sde, t).log()) for t, s in intervals(times)]
    field = _field(score, sde, probes, batch, project)
    state = _start(sde, x, times[-1], batch, project)
    for low, high in reversed(steps):
        state = _rk4(field, state, low, high)
    return _result(sde, state, times, batch, dims)


def adaptive_log_likelihood(
    score: Score,
    sde: SDE,
    x: Tensor,
    times: Tensor,
    probes: Tensor,
    batch: Tensor | None = None,
    *,
    dims: Tensor | None = None,
    project: Projection | None = None,
    tolerance: float = 1e-6,
) -> Tensor:
    """Return the log-likelihood of each sample as `log_likelihood` does, with adaptive steps.

    The steps are those of dopri5 of torchdiffeq, between the first and the last of `times`. All
    samples share them; the sample with the largest error meets the tolerance.

    Args:
        tolerance: of the error of a step, relative and absolute, of x and of the log-likelihood.
    """
    from torchdiffeq import odeint  # imports scipy's integrators, which takes a second

    intervals(times)  # raises the error
    counts = sample_sums(torch.ones_like(x), batch).clamp(min=1)  # (num_samples,)
    ends = [sigma_of(sde, t).log() for t in (times[-1], times[0])]

    def norm(state: State) -> Tensor:
        y, change = state
        return torch.maximum(
            (sample_sums(y.square(), batch) / counts).max().sqrt(), change.abs().max()
        )

    field = _field(score, sde, probes, batch, project)
    start = _start(sde, x, times[-1], batch, project)
    grid = torch.stack(ends).to(x.device)  # (2,)
    out = odeint(field, start, grid, rtol=tolerance, atol=tolerance, options={"norm": norm})
    return _result(sde, (out[0][-1], out[1][-1]), times, batch, dims)


def orthogonal_probes(
    normals: Tensor,
    batch: Tensor | None = None,
    *,
    dims: Tensor | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return probes of which the d or fewer of a sample are orthogonal in its d dimensions.

    They stay unbiased, as normals have no preferred direction; signs would not. With d probes or
    more the divergence is exact, with fewer its variance is less than with independent ones. One
    probe is enough for a Jacobian that is a multiple of one, as a score's is at high noise.

    Args:
        normals: (num_probes, rows, ...) standard normals.
        batch, dims, project: those of `log_likelihood`.
    """
    normals = torch.stack([project(v) for v in normals]) if project else normals
    samples = torch.arange(normals.shape[1], device=normals.device) if batch is None else batch
    found = torch.zeros_like(normals)
    for sample in samples.unique():
        mine = normals[:, samples == sample]  # (num_probes, rows of this sample, ...)
        d = math.prod(mine.shape[1:]) if dims is None else int(dims[sample])
        num = min(d, len(mine))
        basis = torch.linalg.qr(mine[:num].flatten(1).T)[0].T  # (num, numbers of this sample)
        scale = math.sqrt(d * len(mine) / max(num, 1))  # probes beyond d stay zero
        found[:num, samples == sample] = scale * basis.view_as(mine[:num])
    return found


def _start(
    sde: SDE, x: Tensor, t: Tensor, batch: Tensor | None, project: Projection | None
) -> State:
    x = x.detach()
    y = (project(x) if project else x) / scales(sde, t)[0]  # (rows, ...)
    return y, torch.zeros_like(sample_sums(y, batch))


def _field(
    score: Score, sde: SDE, probes: Tensor, batch: Tensor | None, project: Projection | None
) -> Field:
    """Return the field of y in log sigma, with the mean of v . J v over the probes."""
    directions = [project(v) if project else v for v in probes]

    def field(log_sigma: Tensor, state: State) -> State:
        sigma = log_sigma.double().cpu().exp()
        t = sde.time_of(sigma).clamp(max=1)
        alpha, std = scales(sde, t)
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            slope = -sigma * std * score(alpha * y, t)  # (rows, ...)
        divergence = torch.zeros_like(state[1])  # (num_samples,)
        for v in directions:
            (row,) = torch.autograd.grad(slope, y, v, retain_graph=True)
            divergence = divergence + sample_sums(row * v, batch) / len(directions)
        slope = slope.detach()
        return (project(slope) if project else slope), divergence

    return field


def _result(
    sde: SDE, state: State, times: Tensor, batch: Tensor | None, dims: Tensor | None
) -> Tensor:
    """Add the prior's log-density, and those of the scales between x and y, (num_samples,)."""
    y, change = state
    (alpha_first, _), (alpha_last, _) = scales(sde, times[0]), scales(sde, times[-1])
    if dims is None:
        dims = sample_sums(torch.ones_like(y), batch)
    dims = dims.to(change)
    squares = sample_sums((alpha_first * y / sde.prior_std).square(), batch)  # (num_samples,)
    prior = -0.5 * (squares + dims * math.log(2 * math.pi * sde.prior_std**2))
    return prior + change + dims * (alpha_first / alpha_last).log()


def _moved(state: State, slopes: State, step: Tensor) -> State:
    return state[0] + step * slopes[0], state[1] + step * slopes[1]


def _rk4(field: Field, state: State, low: Tensor, high: Tensor) -> State:
    """Step from low to high by the classical Runge-Kutta method, of fourth order."""
    step, middle = high - low, (low + high) / 2
    first = field(low, state)
    second = field(middle, _moved(state, first, step / 2))
    third = field(middle, _moved(state, second, step / 2))
    fourth = field(high, _moved(state, third, step))
    for slopes, weight in ((first, 1), (second, 2), (third, 2), (fourth, 1)):
        state = _moved(state, slopes, step * weight / 6)
    return state
