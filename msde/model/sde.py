"""Forward SDEs on t in [0, 1] (Song et al. 2021), for rows of any shape with one time a row.

The same class serves ragged rows (atoms) and dense rows (molecules). To add an SDE or a noise
schedule: a subclass of `SDE` and its line in SDES; its name and its range in `SDEConfig`.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from msde.config import SDEConfig


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Shape one value a row, (rows,), so that it broadcasts against `like`, (rows, ...)."""
    return value.view(-1, *[1] * (like.dim() - 1))  # (rows, 1, ...)


class SDE(abc.ABC):
    """A forward SDE dx = f(x, t) dt + g(t) dw (Song et al. 2021, eq. 5) with a Gaussian kernel."""

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: SDEConfig) -> SDE:
        """Build the SDE with the range that a configuration gives."""

    @abc.abstractmethod
    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_t given x_0 = x (Song et al. 2021, eq. 29).

        Args:
            x: (rows, ...).
            t: (rows,) times in [0, 1].

        Returns:
            The mean, (rows, ...), and the standard deviation, (rows,), in the unit of x.
        """

    @abc.abstractmethod
    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drift f(x, t) and the diffusion g(t).

        Args:
            x: (rows, ...).
            t: (rows,) times in [0, 1].

        Returns:
            The drift, (rows, ...), and the diffusion, (rows,).
        """

    @abc.abstractmethod
    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals, (rows, ...), into a sample of the prior, which is close to p_1."""


class VESDE(SDE):
    """Variance exploding: dx = sigma(t) sqrt(2 ln(sigma_max / sigma_min)) dw (Song et al., eq. 9).

    x_t = x_0 + sigma(t) z with sigma(t) = sigma_min (sigma_max / sigma_min)^t.
    """

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        """Set sigma at t = 0 and t = 1, in the unit of x."""
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @classmethod
    def from_config(cls, config: SDEConfig) -> SDE:
        """Take the range of sigma."""
        return cls(config.sigma_min, config.sigma_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t  # (rows,)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_t given x_0 = x, (rows, ...) and (rows,)."""
        return x, self._sigma(t)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift and diffusion, (rows, ...) and (rows,)."""
        diffusion = self._sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))
        return torch.zeros_like(x), diffusion

    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals, (rows, ...), into a sample of N(0, sigma_max^2)."""
        return self.sigma_max * noise


class VPSDE(SDE):
    """Variance preserving: dx = -beta(t)/2 x dt + scale sqrt(beta(t)) dw (Song et al., eq. 11).

    beta is linear in t. A scale of one is that of Song et al.; another one gives the same process
    for data measured in that unit.
    """

    def __init__(self, beta_min: float, beta_max: float, scale: float = 1.0) -> None:
        """Set beta at t = 0 and t = 1, and the standard deviation of the prior in the unit of x."""
        self.beta_min, self.beta_max, self.scale = beta_min, beta_max, scale

    @classmethod
    def from_config(cls, config: SDEConfig) -> SDE:
        """Take the range of beta and the scale."""
        return cls(config.beta_min, config.beta_max, config.scale)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min  # (rows,)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)  # (rows,)

    def _std(self, log_alpha: Tensor) -> Tensor:
        # expm1 keeps it accurate where t is close to zero.
        return torch.sqrt(-torch.expm1(2 * log_alpha))  # (rows,)

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t))  # (rows,)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_t given x_0 = x, (rows, ...) and (rows,)."""
        log_alpha = self._log_alpha(t)  # (rows,)
        return per_row(torch.exp(log_alpha), x) * x, self.scale * self._std(log_alpha)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift and diffusion, (rows, ...) and (rows,)."""
        return -0.5 * per_row(self._beta(t), x) * x, self.scale * self._diffusion(t)

    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals, (rows, ...), into a sample of N(0, scale^2)."""
        return self.scale * noise


class SubVPSDE(VPSDE):
    """Sub-variance preserving: the drift of VPSDE with less noise (Song et al. 2021, eq. 12)."""

    def _std(self, log_alpha: Tensor) -> Tensor:
        return -torch.expm1(2 * log_alpha)  # (rows,)

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t) * -torch.expm1(4 * self._log_alpha(t)))  # (rows,)


SDES: dict[str, type[SDE]] = {"VE": VESDE, "VP": VPSDE, "subVP": SubVPSDE}


def make_sde(config: SDEConfig) -> SDE:
    """Build the SDE that a configuration names."""
    return SDES[config.kind].from_config(config)


def perturb(sde: SDE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t = mean + std noise given x_0 = x.

    Args:
        x: (rows, ...), like the result.
        t: (rows,) times in [0, 1].
        noise: (rows, ...) standard normals.
    """
    mean, std = sde.marginal_prob(x, t)
    return mean + per_row(std, mean) * noise


def input_scale(sde: SDE, t: Tensor, spread: float | None) -> Tensor:
    """Return the factor that brings x_t of data with this spread back to that spread, (rows,).

    The network's inputs then have one size at every t (Karras et al. 2022, c_in).

    Args:
        t: (rows,) times in [0, 1].
        spread: standard deviation of the data, in their unit; None gives factors of one.
    """
    if spread is None:
        return torch.ones_like(t)
    alpha, std = sde.marginal_prob(torch.ones_like(t), t)  # (rows,) each
    return torch.rsqrt(alpha.square() + (std / spread).square())


def score_from_noise(noise_pred: Tensor, std: Tensor) -> Tensor:
    """Return the score of p_t, -noise_pred / std: the only place that knows the relation.

    Args:
        noise_pred: (rows, ...) predicted standard-normal noise, like the result.
        std: (rows,) standard deviation of x_t given x_0.
    """
    return -noise_pred / per_row(std, noise_pred)
