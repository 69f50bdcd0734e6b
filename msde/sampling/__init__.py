"""Samples and likelihoods from a score and an SDE."""

from msde.sampling.likelihood import adaptive_log_likelihood, log_likelihood, orthogonal_probes
from msde.sampling.noise import keyed_noise
from msde.sampling.samplers import SAMPLERS, denoise
from msde.sampling.schedule import karras_times, uniform_times

__all__ = [
    "SAMPLERS",
    "adaptive_log_likelihood",
    "denoise",
    "karras_times",
    "keyed_noise",
    "log_likelihood",
    "orthogonal_probes",
    "uniform_times",
]
