"""Names and a default of commands' options, which --help lists without importing torch."""

from __future__ import annotations

# Of `msde.sampling.samplers`.
SAMPLERS = (
    "euler_maruyama",
    "reverse_diffusion",
    "ancestral",
    "ancestral_vp",
    "annealed_langevin",
    "predictor_corrector",
    "heun",
    "stochastic_heun",
    "adaptive",
    "dpm_solver_2m",
)
CLASSIFIER = "classifier"  # finds bonds in one pass of the network, without a sampler
STARTS = ("etkdg", "noise")  # of sampled conformers
STD_ON_ETKDG = 2.0  # A, of the noise that is added to ETKDG's conformers
NOISES = (0.0, 0.05, 0.1, 0.2)  # A, on the geometries whose bonds are compared
GPU_MEMORY = {"A100-40GB": 40e9, "A100": 80e9, "H100": 80e9, "H200": 141e9}  # bytes
