"""The schedule of an SDE as samplers use it: scales at one time, and grids of times.

A time is a 0-dim tensor in (0, 1]. Grids are float64 on the CPU: numbers of 0 dimensions combine
with x of any dtype and device, and differences of close times stay accurate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msde.errors import MsdeError
from msde.model.sde import SDE

FIRST_TIME = 1e-3  # the least time at which a score is asked for


def scales(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and std of x_t = alpha x_0 + std z at time t; all are 0-dim."""
    alpha, std = sde.marginal_prob(torch.ones_like(t).view(1), t.view(1))  # (1,) each
    return alpha.squeeze(0), std.squeeze(0)


def coefficients(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return f and g of dx = f x dt + g dw at time t; all are 0-dim."""
    f, g = sde.sde(torch.ones_like(t).view(1), t.view(1))  # (1,) each
    return f.squeeze(0), g.squeeze(0)


def sigma_of(sde: SDE, t: Tensor) -> Tensor:
    """Return sigma = std / alpha, the std of the noise in x_t / alpha, in the unit of x."""
    alpha, std = scales(sde, t)
    return std / alpha


def transition(sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and v of the forward step from s to t > s: x_t given x_s is N(a x_s, v)."""
    (alpha_t, std_t), (alpha_s, std_s) = scales(sde, t), scales(sde, s)
    a = alpha_t / alpha_s
    return a, (std_t.square() - (a * std_s).square()).clamp(min=0)


def time_of_noise(sde: SDE, ratio: Tensor | float) -> Tensor:
    """Return the time at which std / alpha has this value, within the times of a network.

    Args:
        ratio: any shape, in the unit of x.
    """
    return sde.time_of(torch.as_tensor(ratio, dtype=torch.float32)).clamp(FIRST_TIME, 1.0)


def uniform_times(steps: int, first: float = 1.0, last: float = 1e-3) -> Tensor:
    """Return equally spaced times from `first` down to `last`, (steps + 1,) float64."""
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def karras_times(
    sde: SDE, steps: int, rho: float = 7.0, first: float = 1.0, last: float = 1e-3
) -> Tensor:
    """Return times whose sigma^(1 / rho) is equally spaced (Karras et al. 2022, eq. 5).

    Args:
        steps: number of intervals, at least 1.
        rho: 1 spaces sigma = std / alpha equally; more puts more of the steps at low noise.
        first: the time of x at the start, at most 1.
        last: the time at which the sampler ends, more than 0.

    Returns:
        (steps + 1,) float64, descending.
    """
    ends = torch.tensor([first, last], dtype=torch.float64)
    high, low = torch.stack([sigma_of(sde, t) for t in ends]) ** (1 / rho)
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = sde.time_of((high + share * (low - high)) ** rho)  # (steps + 1,)
    times[0], times[-1] = first, last  # without the rounding of there and back
    return times


def intervals(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs (t, s), t > s, that a sampler steps through.

    Raises:
        MsdeError: there are fewer than two times, or they do not descend within (0, 1].
    """
    values = times.tolist()
    falling = all(t > s for t, s in zip(values, values[1:], strict=False))
    if len(values) < 2 or not falling or not 0 < values[-1] < values[0] <= 1:
        shown = [f"{t:g}" for t in values[:4]] + ["..."] * (len(values) > 4)
        raise MsdeError(
            "the times of a sampler must be two or more that descend within (0, 1], "
            f"got [{', '.join(shown)}]"
        )
    return list(zip(times[:-1], times[1:], strict=True))
