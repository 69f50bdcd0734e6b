"""Forward SDEs on t in [0, 1] (Song et al. 2021), for rows of any shape with one time a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msde.config import SDEConfig


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Shape one value a row, (rows,), so that it broadcasts against `like`, (rows, ...)."""
    return value.view(-1, *[1] * (like.dim() - 1))


class VESDE:
    """Variance exploding: x_t = x_0 + sigma(t) z, sigma(t) = sigma_min (sigma_max/sigma_min)^t."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        """Set the noise at t = 0 and t = 1, in the unit of x."""
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean, like x, and the std, like t, of x_t given x_0 = x."""
        return x, self._sigma(t)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drift, like x, and the diffusion, like t."""
        diffusion = self._sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))
        return torch.zeros_like(x), diffusion

    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals into a sample of the prior N(0, sigma_max^2)."""
        return self.sigma_max * noise


class VPSDE:
    """Variance preserving: dx = -beta(t)/2 x dt + scale sqrt(beta(t)) dw with beta linear in t.

    With `scale` one as in Song et al.; else the same process for data measured in that unit.
    """

    def __init__(self, beta_min: float, beta_max: float, scale: float = 1.0) -> None:
        """Set beta at t = 0 and t = 1, and the std of the prior in the unit of x."""
        self.beta_min, self.beta_max, self.scale = beta_min, beta_max, scale

    def _log_mean(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _std(self, log_mean: Tensor) -> Tensor:
        # expm1 keeps it accurate where t is close to zero.
        return torch.sqrt(-torch.expm1(2 * log_mean))

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t))

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean, like x, and the std, like t, of x_t given x_0 = x."""
        log_mean = self._log_mean(t)
        return per_row(torch.exp(log_mean), x) * x, self.scale * self._std(log_mean)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drift, like x, and the diffusion, like t."""
        return -0.5 * per_row(self._beta(t), x) * x, self.scale * self._diffusion(t)

    def prior_sampling(self, noise: Tensor) -> Tensor:
        """Turn standard normals into a sample of the prior N(0, scale^2)."""
        return self.scale * noise


class SubVPSDE(VPSDE):
    """Sub-variance preserving: the drift of VPSDE with less noise (Song et al. 2021, eq. 29)."""

    def _std(self, log_mean: Tensor) -> Tensor:
        return -torch.expm1(2 * log_mean)

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t) * -torch.expm1(4 * self._log_mean(t)))


SDE = VESDE | VPSDE


def make_sde(config: SDEConfig) -> SDE:
    """Build the SDE that a configuration names."""
    if config.kind == "VE":
        return VESDE(config.sigma_min, config.sigma_max)
    kind = {"VP": VPSDE, "subVP": SubVPSDE}[config.kind]
    return kind(config.beta_min, config.beta_max, config.scale)


def perturb(sde: SDE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t = mean + std noise given x_0 = x, with one time a row of x."""
    mean, std = sde.marginal_prob(x, t)
    return mean + per_row(std, mean) * noise


def input_scale(sde: SDE, t: Tensor, spread: float | None) -> Tensor:
    """Return the factor, like t, that brings x_t of data with this spread back to that spread.

    A network then sees numbers of one size at every t (Karras et al. 2022, c_in). None gives one.
    """
    if spread is None:
        return torch.ones_like(t)
    shrink, std = sde.marginal_prob(torch.ones_like(t), t)
    return torch.rsqrt(shrink.square() + (std / spread).square())


def score_from_noise(noise_pred: Tensor, std: Tensor) -> Tensor:
    """Turn predicted noise into the score of p_t; the only place that knows the relation."""
    return -noise_pred / per_row(std, noise_pred)
