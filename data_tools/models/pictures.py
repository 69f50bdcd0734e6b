"""Pictures of a model's conformers beside references, as PNG files.

conformers.png   the nearest of some samples over each reference, with its RMSD
film.png         one molecule on the way from noise, at several steps of the sampler
errors.png       by the size of the noise: how far noised references are from the true
                 positions, and how far after one evaluation of the network
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from msde.evaluation.conformers import rmsd_matrix
from msde.evaluation.pictures import overlay, structure_of
from msde.model import MoleculeSDE
from msde.model.sde import perturb
from msde.monitor.pictures import Cell, draw_curves, draw_structures, save_figure
from msde.sampling.conformers import (
    LAST_STD,
    ConformerOptions,
    batch_of_conformers,
    sample_batch,
    sample_conformers,
    score_function,
)
from msde.sampling.noise import keyed_noise
from msde.sampling.samplers import denoise
from msde.sampling.schedule import FIRST_TIME, sigma_of, time_of_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 10  # molecules of the page
FRAMES = 8
LEVELS = 16


def draw_samples(
    model: MoleculeSDE, references: Sequence[Chem.Mol], folder: Path, sampling: ConformerOptions
) -> None:
    """Draw the three pictures.

    Args:
        references: molecules without hydrogens, with a conformer each.
        sampling: how conformers of the page are sampled.

    Raises:
        MsdeError: matplotlib is not installed, or the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = np.linspace(0, len(references) - 1, min(SHOWN, len(references))).round().astype(int)
    shown = [references[place] for place in places]
    cells = []
    for mol, found in zip(shown, sample_conformers(model, shown, sampling), strict=True):
        if found.mol is None:
            continue
        samples = Chem.RemoveHs(found.mol)
        nearest = int(rmsd_matrix(samples, mol)[0].argmin())
        cells.append(overlay(mol, samples.GetConformers()[nearest].GetPositions()))
    start = {"etkdg": "ETKDG"}.get(sampling.start, sampling.start)
    title = f"nearest of {sampling.num} samples from {start}, over the reference (grey)"
    save_figure(draw_structures(cells, title=title), folder / "conformers.png")
    middle = sorted(shown, key=lambda mol: mol.GetNumAtoms())[len(shown) // 2]
    save_figure(_film(model, middle, sampling), folder / "film.png")
    stds, noised, denoised = denoising_errors(model, shown, sampling.seed)
    curves = {"noised": noised, "after one evaluation": denoised}
    figure = draw_curves(stds, curves, "noise, A", "distance from the reference, A")
    save_figure(figure, folder / "errors.png")


def _film(model: MoleculeSDE, mol: Chem.Mol, sampling: ConformerOptions) -> Figure:
    """Draw one sample from noise at evenly chosen steps of the sampler."""
    seen: list[tuple[float, np.ndarray]] = []
    sde = model.score_2d_to_3d.sde

    def observe(pos: Tensor, t: Tensor) -> None:
        seen.append((float(sigma_of(sde, t)), pos.cpu().numpy()))

    batch, options = batch_of_conformers(model, [mol]), replace(sampling, start="noise")
    numbers = torch.zeros_like(batch.atoms_per_graph)
    (last,) = sample_batch(model, batch, numbers, None, options, observe)
    frames = np.linspace(0, len(seen) - 1, FRAMES - 1).round().astype(int)
    cells = [Cell(structure_of(mol, seen[k][1]), f"{seen[k][0]:.2g} A") for k in frames]
    final = overlay(mol, last)
    cells.append(replace(final, title=f"end, {final.title}"))
    return draw_structures(cells, FRAMES, "from noise to a conformer; the size of the noise")


@torch.no_grad()
def denoising_errors(
    model: MoleculeSDE, mols: Sequence[Chem.Mol], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes of noise, and root mean square distances to the references without and with
    the network, (LEVELS,) A each.
    """
    batch = batch_of_conformers(model, mols)
    network = model.score_2d_to_3d
    score = score_function(model, batch)
    draws = keyed_noise(seed, batch.uid[batch.batch], batch.atom_in_graph, 3)
    pos = network.to_subspace(batch.pos, batch)
    least, most = (float(sigma_of(network.sde, torch.tensor(t))) for t in (FIRST_TIME, 1.0))
    stds = np.geomspace(max(least, LAST_STD), most, LEVELS)
    errors = []
    for level, std in enumerate(stds):
        t = time_of_noise(network.sde, std)
        times = t.expand(len(pos)).to(pos)
        noised = perturb(network.sde, pos, times, network.to_subspace(draws(level), batch))
        alpha = network.sde.marginal_prob(torch.ones_like(t), t[None])[0]
        guesses = (noised / alpha.to(pos), denoise(score, network.sde, noised, t))
        errors.append([float((x - pos).square().sum(-1).mean().sqrt()) for x in guesses])
    return stds, *np.array(errors).T
