"""Forward SDEs on t in [0, 1] (Song et al. 2021), for rows of any shape with one time a row.

Rows are atoms or whole molecules. To add an SDE or a noise schedule: a subclass of `SDE` and its
line in SDES here, its name and its range in `SDEConfig`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from msde.config import SDEConfig


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Shape one value a row, (rows,), so that it broadcasts against `like`, (rows, ...)."""
    return value.view(-1, *[1] * (like.dim() - 1))  # (rows, 1, ...)


class SDE(abc.ABC):
    """A linear forward SDE dx = f(t) x dt + g(t) dw, for which p(x_t | x_0) is a Gaussian.

    In all methods x is (rows, ...) and t, (rows,), has the time of each row in [0, 1].
    """

    prior_std: float  # in the unit of x

    @abc.abstractmethod
    def _kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and the standard deviation of x_t = alpha x_0 + std z, (rows,) each."""

    @abc.abstractmethod
    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(t) and g(t), (rows,) each."""

    @abc.abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time at which std / alpha has this value, any shape, in the unit of x.

        The ratio grows with t; values outside its range on [0, 1] give times outside [0, 1].
        """

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean, (rows, ...), and the standard deviation, (rows,), of x_t if x_0 = x."""
        alpha, std = self._kernel(t)
        return per_row(alpha, x) * x, std

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drift f(t) x, (rows, ...), and the diffusion g(t), (rows,)."""
        f, g = self._coefficients(t)
        return per_row(f, x) * x, g

    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals, (rows, ...), into a sample of the prior N(0, prior_std^2)."""
        return self.prior_std * noise


class VESDE(SDE):
    """Variance exploding (Song et al. 2021, eq. 9): x_t = x_0 + sigma(t) z.

    sigma(t) = sigma_min (sigma_max / sigma_min)^t.
    """

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        """Set sigma at t = 0 and t = 1, in the unit of x."""
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max

    def _kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _, sigma = self._kernel(t)
        ratio = self.sigma_max / self.sigma_min
        return torch.zeros_like(t), sigma * math.sqrt(2 * math.log(ratio))

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time of sigma; see `SDE`."""
        return torch.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


class VPSDE(SDE):
    """Variance preserving (Song et al. 2021, eq. 11): f = -beta(t)/2 and g = scale sqrt(beta(t)).

    beta is linear in t. The scale is one in Song et al.; any other value gives the same process for
    data in that unit.
    """

    def __init__(self, beta_min: float, beta_max: float, scale: float = 1.0) -> None:
        """Set beta at t = 0 and t = 1, and the standard deviation of the prior in the unit of x."""
        self.beta_min, self.beta_max, self.prior_std = beta_min, beta_max, scale

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min  # (rows,)

    def _kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        # expm1 keeps the standard deviation accurate where t is close to zero.
        return torch.exp(log_alpha), self.prior_std * torch.sqrt(-torch.expm1(2 * log_alpha))

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta_min + t * (self.beta_max - self.beta_min)  # (rows,)
        return -0.5 * beta, self.prior_std * torch.sqrt(beta)

    def _time_of_alpha(self, minus_log: Tensor) -> Tensor:
        """Return the time at which -log alpha, quadratic in t, has this value."""
        root = torch.sqrt(0.25 * self.beta_min**2 + (self.beta_max - self.beta_min) * minus_log)
        return 2 * minus_log / (0.5 * self.beta_min + root)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time at which sqrt(1 / alpha^2 - 1) is ratio / prior_std; see `SDE`."""
        return self._time_of_alpha(0.5 * torch.log1p((ratio / self.prior_std).square()))


class SubVPSDE(VPSDE):
    """Sub-variance preserving (Song et al. 2021, eq. 12): the drift of VPSDE with less noise."""

    def _kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return torch.exp(log_alpha), self.prior_std * -torch.expm1(2 * log_alpha)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super()._coefficients(t)
        return f, g * torch.sqrt(-torch.expm1(4 * self._log_alpha(t)))

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time at which 1 / alpha - alpha is ratio / prior_std; see `SDE`."""
        return self._time_of_alpha(torch.asinh(0.5 * ratio / self.prior_std))


# The name in the configuration, and the SDE with its range.
SDES: dict[str, Callable[[SDEConfig], SDE]] = {
    "VE": lambda config: VESDE(config.sigma_min, config.sigma_max),
    "VP": lambda config: VPSDE(config.beta_min, config.beta_max, config.scale),
    "subVP": lambda config: SubVPSDE(config.beta_min, config.beta_max, config.scale),
}


def make_sde(config: SDEConfig) -> SDE:
    """Build the SDE that a configuration names."""
    return SDES[config.kind](config)


def perturb(sde: SDE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t = mean + std noise given x_0 = x; x and noise are (rows, ...), t is (rows,)."""
    mean, std = sde.marginal_prob(x, t)
    return mean + per_row(std, mean) * noise


def input_scale(sde: SDE, t: Tensor, spread: float | None) -> Tensor:
    """Return the factor that brings x_t of data with this spread back to that spread, (rows,).

    A network's inputs then have one size at every t (Karras et al. 2022, c_in). The spread is the
    standard deviation of the data, in their unit; None gives factors of one.
    """
    if spread is None:
        return torch.ones_like(t)
    alpha, std = sde.marginal_prob(torch.ones_like(t), t)  # (rows,) each
    return torch.rsqrt(alpha.square() + (std / spread).square())


def score_from_noise(noise_pred: Tensor, std: Tensor) -> Tensor:
    """Return the score of p_t, -noise_pred / std: the only place that knows the relation.

    Args:
        noise_pred: (rows, ...) predicted standard-normal noise, like the result.
        std: (rows,) standard deviation of x_t given x_0, see `SDE.marginal_prob`.
    """
    return -noise_pred / per_row(std, noise_pred)
