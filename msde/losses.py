"""The losses, each one value a molecule over its own atoms and pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from msde.batch import MoleculeBatch
from msde.ops import segment_mean


def denoising_positions(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Denoising score matching of positions: mean over atoms of |noise_pred - noise|^2.

    Vincent 2011, with the weighting that predicts noise (Ho et al. 2020). Returns (num_graphs,);
    predicting zero gives 3.
    """
    per_atom = (noise_pred - noise).square().sum(-1)  # (num_atoms,)
    return segment_mean(per_atom, batch.batch, batch.atoms_per_graph)


def denoising_atom_types(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Denoising score matching of atom types, (num_graphs,): mean over atoms and types."""
    per_atom = (noise_pred - noise).square().mean(-1)  # (num_atoms,)
    return segment_mean(per_atom, batch.batch, batch.atoms_per_graph)


def denoising_adjacency(noise_pred: Tensor, noise: Tensor, batch: MoleculeBatch) -> Tensor:
    """Denoising score matching of the adjacency, (num_graphs,): mean over pairs of atoms.

    Zero for a molecule of one atom, which has no pair.
    """
    per_pair = (noise_pred - noise).square()  # (num_pairs,)
    return segment_mean(per_pair, batch.pair_batch, batch.pair_ptr[1:] - batch.pair_ptr[:-1])


def ebm_nce(
    h: Tensor, other: Tensor, negative: Tensor, temperature: float, batch: MoleculeBatch
) -> tuple[Tensor, Tensor]:
    """Noise-contrastive estimation at node level, from `h` to `other` (Liu et al. 2022, GraphMVP).

    Args:
        h: (num_atoms, hidden_dim) representations of one view.
        other: (num_atoms, hidden_dim) representations of the other view.
        negative: (num_atoms,) the atom whose `other` is each atom's negative.

    Returns:
        The loss and the share of logits on the right side of zero, each (num_graphs,).
    """
    positive_logit = (h * other).sum(-1) / temperature  # (num_atoms,)
    negative_logit = (h * other.index_select(0, negative)).sum(-1) / temperature  # (num_atoms,)
    loss = softplus(-positive_logit) + softplus(negative_logit)  # (num_atoms,)
    right = 0.5 * ((positive_logit > 0).float() + (negative_logit < 0).float())  # (num_atoms,)
    counts = batch.atoms_per_graph
    return segment_mean(loss, batch.batch, counts), segment_mean(right, batch.batch, counts)
