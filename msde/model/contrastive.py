"""Contrastive objectives between the two views of a molecule, one value a molecule.

A positive pair is the same atom or molecule in both views. Negatives come from the same slot or,
with `loss.negatives=ranks`, from the slots of all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import softplus

from msde import philox
from msde.config import LossConfig
from msde.data.batch import MoleculeBatch
from msde.ops import row_dot, segment_mean, words
from msde.philox import Stream


def ebm_nce(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Energy-based noise-contrastive estimation, EBM-NCE (Liu et al. 2022, GraphMVP).

    Args:
        positive: (rows,) logits of the positive pairs.
        negative: (rows, num_negatives) logits of the negative pairs; num_negatives may be zero.

    Returns:
        The loss and the share of logits that have the right sign, each (rows,).
    """
    loss = softplus(-positive) + softplus(negative).sum(-1)  # (rows,)
    correct = (positive > 0).float() + (negative < 0).float().sum(-1)  # (rows,)
    return loss, correct / (1 + negative.shape[1])


def info_nce(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE: cross-entropy of the positive among all (van den Oord et al. 2018, eq. 4).

    Args:
        logits: (rows, candidates).
        own: (rows,) the candidate that is the row's positive.

    Returns:
        The loss, and 1.0 where the positive has the largest logit, else 0.0, each (rows,).
    """
    loss = torch.nn.functional.cross_entropy(logits, own, reduction="none")  # (rows,)
    return loss, (logits.argmax(-1) == own).float()


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all ranks; backward sums their gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # (most rows of a rank, width)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.counts = counts
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Data-parallel training averages over ranks, so the sum gives the mean loss's gradient.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[dist.get_rank()], None


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all ranks in order, (all rows, width), and the index of the first own."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    counts = rows.new_zeros(dist.get_world_size(), dtype=torch.int64)  # (world_size,)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    sizes = counts.tolist()
    return _GatherRows.apply(rows, sizes), sum(sizes[: dist.get_rank()])


class Objective:
    """A contrastive objective; a subclass chooses the negatives.

    Its rows are atoms where `level` is "node", and molecules where it is "graph".
    """

    level = "graph"

    def __init__(self, config: LossConfig) -> None:
        """Take temperature, number and source of negatives from the configuration."""
        self.config = config

    def draw(self, batch: MoleculeBatch, stream: Stream) -> Tensor:
        """Draw the random numbers that `__call__` chooses negatives by, here none: (0,)."""
        return batch.uid[:0]  # (0,)

    def pool(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows that negatives come from, (pool rows, dim), and the own ones, (rows,)."""
        pool, first = gather_rows(other) if self.config.negatives == "ranks" else (other, 0)
        return pool, first + torch.arange(len(other), device=other.device)

    def ebm_nce(self, h: Tensor, pool: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return `ebm_nce` of each row with some rows of the pool; both results are (rows,).

        Args:
            h: (rows, dim).
            pool: (pool rows, dim).
            at: (rows,) each, rows of the pool: first the positive's, then those of negatives.
        """
        columns = torch.stack(at, dim=-1)  # (rows, 1 + num_negatives)
        logits = row_dot(h, pool, columns) / self.config.temperature
        return ebm_nce(logits[:, 0], logits[:, 1:])

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and accuracy of each molecule, (num_graphs,) each.

        Args:
            h: (rows, dim) representations of one view.
            other: (rows, dim) representations of the other view, positives and negatives.
            drawn: the result of `draw`.
        """
        raise NotImplementedError


class NodeEBMNCE(Objective):
    """EBM-NCE over atoms: the negative of each is one other, drawn at random."""

    level = "node"

    def draw(self, batch: MoleculeBatch, stream: Stream) -> Tensor:
        """Draw each atom's negative, (num_atoms,): an atom of the slot, or a 32-bit number.

        Within the slot the negatives are a permutation of the atoms. The number of atoms of all
        ranks is not known here, so `__call__` scales the 32-bit number to it.
        """
        uid = batch.uid[batch.batch]
        drawn = words(batch.key, stream, uid, batch.atom_in_graph, 2)  # (num_atoms, 2)
        if self.config.negatives == "ranks":
            return drawn[:, 0]
        key, num_valid = philox.sort_key(drawn), batch.num_valid_atoms  # (num_atoms,) and ()
        atom = torch.arange(len(key), device=key.device)  # (num_atoms,)
        if num_valid is not None:  # the padding stays last, and its negatives do not matter
            lowest = -(2**63)  # an int64, which 2**63 is not
            key = torch.where(atom < num_valid, key + lowest, atom)
        order = torch.argsort(key)  # (num_atoms,)
        if not self.config.exclude_true_pairs:
            return order
        # One random cycle through all atoms: a permutation without fixed points.
        after = (atom + 1) % (len(key) if num_valid is None else num_valid)  # (num_atoms,)
        return torch.empty_like(order).index_copy_(0, order, order.index_select(0, after))

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss and accuracy over the atoms of each molecule, (num_graphs,) each."""
        pool, own = self.pool(other)  # (pool atoms, dim) and (num_atoms,)
        exclude = self.config.exclude_true_pairs
        at = [own]
        if not (exclude and len(pool) == 1):  # a single atom has no negative
            over_ranks = self.config.negatives == "ranks"
            at.append(_scale_to(pool, own, drawn, exclude) if over_ranks else drawn)
        loss, accuracy = self.ebm_nce(h, pool, at)  # (num_atoms,) each
        counts = batch.atoms_per_graph
        return segment_mean(loss, batch.batch, counts), segment_mean(accuracy, batch.batch, counts)


class GraphEBMNCE(Objective):
    """EBM-NCE over molecules: the negatives of each are the next `num_shifts` ones.

    In training the order of the molecules in a slot is random.
    """

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and accuracy of each molecule, (num_graphs,) each."""
        pool, own = self.pool(other)  # (pool molecules, dim) and (num_graphs,)
        shifts = min(self.config.num_shifts, len(pool) - 1)  # len(pool) is the positive again
        return self.ebm_nce(h, pool, [(own + k) % len(pool) for k in range(shifts + 1)])


class InfoNCE(Objective):
    """InfoNCE over molecules: the negatives of each are all others of the pool."""

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and accuracy of each molecule, (num_graphs,) each."""
        pool, own = self.pool(other)  # (pool molecules, dim) and (num_graphs,)
        return info_nce(h @ pool.t() / self.config.temperature, own)


OBJECTIVES = {"node_ebm_nce": NodeEBMNCE, "graph_ebm_nce": GraphEBMNCE, "info_nce": InfoNCE}


def _scale_to(pool: Tensor, own: Tensor, drawn: Tensor, exclude_own: bool) -> Tensor:
    """Scale 32-bit numbers to rows of the pool, (rows,), with or without the own row."""
    if not exclude_own:
        return drawn * len(pool) >> 32
    row = drawn * (len(pool) - 1) >> 32  # (rows,)
    return row + (row >= own)
