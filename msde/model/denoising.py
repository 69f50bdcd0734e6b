"""Denoising score matching (Vincent 2011): one value a molecule over its own atoms or pairs.

Weighted by the variance, so that a network predicts noise (Ho et al. 2020, eq. 14).
"""

from __future__ import annotations

from torch import Tensor, nn

from msde.data.batch import MoleculeBatch
from msde.ops import segment_mean, segment_sum


def position_loss(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Return the mean over atoms of `|noise_pred - noise|^2`, (num_graphs,).

    Predicting zero gives 3 on average, or 3 (n - 1) / n for centred noise on n atoms.

    Args:
        noise_pred, noise: (num_atoms, 3).
    """
    per_atom = (noise_pred - noise).square().sum(-1)  # (num_atoms,)
    return segment_mean(per_atom, batch.batch, batch.atoms_per_graph)


def atom_type_loss(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Return the mean over atoms and types of (noise_pred - noise)^2, (num_graphs,).

    Args:
        noise_pred, noise: (num_atoms, 119).
    """
    per_atom = (noise_pred - noise).square().mean(-1)  # (num_atoms,)
    return segment_mean(per_atom, batch.batch, batch.atoms_per_graph)


def hidden_type_loss(logits: Tensor, types: Tensor, hidden: Tensor, batch: MoleculeBatch) -> Tensor:
    """Return the mean cross-entropy of atom types of molecules that hide them, (num_graphs,).

    Of other molecules it is zero.

    Args:
        logits: (num_atoms, 119).
        types: (num_atoms,) the true codes.
        hidden: (num_graphs,) bool.
    """
    per_atom = nn.functional.cross_entropy(logits, types, reduction="none")  # (num_atoms,)
    return segment_mean(per_atom, batch.batch, batch.atoms_per_graph) * hidden


def adjacency_loss(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Return the mean over pairs of atoms of (noise_pred - noise)^2, (num_graphs,).

    It is zero for a molecule of one atom, which has no pair.

    Args:
        noise_pred, noise: (num_pairs,).
    """
    per_pair = (noise_pred - noise).square()  # (num_pairs,)
    return segment_mean(per_pair, batch.pair_batch, batch.pair_ptr[1:] - batch.pair_ptr[:-1])


def bond_loss(logits: Tensor, classes: Tensor, graph: Tensor, batch: MoleculeBatch) -> Tensor:
    """Return the cross-entropy of a molecule's near pairs over its number of atoms, (num_graphs,).

    Args:
        logits: (num_near, classes).
        classes: (num_near,) the true ones; one that has no logit does not count.
        graph: (num_near,) the molecule of each pair.
    """
    known = classes < logits.shape[1]
    per_pair = nn.functional.cross_entropy(logits, classes * known, reduction="none") * known
    total = segment_sum(per_pair.unsqueeze(-1), graph, batch.num_graphs).squeeze(-1)
    return total / batch.atoms_per_graph
