"""Log-likelihoods of conformers under a score network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from msde.chem.parsing import remove_hydrogens
from msde.chem.vocabulary import MoleculeError
from msde.data.batch import MoleculeBatch
from msde.errors import one_line, require
from msde.model import MoleculeSDE
from msde.sampling.conformers import (
    LAST_STD,
    batch_of_conformers,
    check_sampled,
    score_function,
)
from msde.sampling.likelihood import log_likelihood, orthogonal_probes
from msde.sampling.noise import keyed_noise
from msde.sampling.schedule import karras_times, time_of_noise


def log_likelihoods(
    model: MoleculeSDE,
    mols: Sequence[Chem.Mol],
    steps: int = 12,
    num_probes: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Return the log-likelihood of each molecule's first conformer, (num_molecules,) nats.

    It is the density of centred heavy-atom positions in A, in 3 (num_atoms - 1) dimensions, given
    the topology, of data with noise LAST_STD; see `likelihood`. Likelihoods compare conformers of
    one molecule, or models on the same molecules.

    Args:
        num_probes: random directions for the divergence; from 3 (num_atoms - 1) on it is exact, and
            nothing depends on `seed`. With fewer the deviation over seeds says how exact it is.

    Raises:
        MoleculeError: a molecule cannot be represented, or is of a kind that is not sampled.
        MsdeError: there are no steps or no probes.
    """
    require(
        {
            "steps must be at least 1": steps >= 1,
            "num_probes must be at least 1": num_probes >= 1,
        }
    )
    batches = [_batch_of(model, number, mol) for number, mol in enumerate(mols)]
    found = []
    network = model.score_2d_to_3d
    for batch in batches:  # alone: the graph of gradients takes memory
        dims = 3 * (batch.atoms_per_graph - 1)
        last = time_of_noise(network.sde, LAST_STD).item()
        draws = keyed_noise(seed, batch.uid[batch.batch], batch.atom_in_graph, 3)

        def project(rows: Tensor, batch: MoleculeBatch = batch) -> Tensor:
            return network.to_subspace(rows, batch)

        num = max(1, min(num_probes, int(dims)))
        normals = torch.stack([draws(number) for number in range(num)])
        probes = orthogonal_probes(normals, batch.batch, dims=dims, project=project)
        times = karras_times(network.sde, steps, last=last)
        with torch.no_grad():
            score = score_function(model, batch)
        value = log_likelihood(
            score, network.sde, batch.pos, times, probes, batch.batch,
            dims=dims, project=project,
        )  # fmt: skip
        found.append(value.item())
    return np.array(found)


def _batch_of(model: MoleculeSDE, number: int, mol: Chem.Mol) -> MoleculeBatch:
    """Return a molecule's first conformer as a batch; errors name its number."""
    try:
        mol = remove_hydrogens(Chem.Mol(mol))
        check_sampled(mol)
        return batch_of_conformers(model, [mol])
    except (ValueError, RuntimeError) as error:
        raise MoleculeError(f"molecule {number}: {one_line(error)}") from error
