"""Contrastive objectives between the two views of a molecule, each one value a molecule.

A positive pair is the same atom or molecule seen by both encoders; what it is held against comes
from the same slot or, with `loss.negatives=ranks`, from the slots of all ranks.
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
    """Energy-based noise-contrastive estimation (Liu et al. 2022, GraphMVP).

    Args:
        positive: (rows,) logits of the true pairs.
        negative: (rows, num_negatives) logits of false pairs; there may be none.

    Returns:
        The loss and the share of logits on the right side of zero, each (rows,).
    """
    loss = softplus(-positive) + softplus(negative).sum(-1)  # (rows,)
    right = (positive > 0).float() + (negative < 0).float().sum(-1)  # (rows,)
    return loss, right / (1 + negative.shape[1])


def info_nce(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding each row's partner (van den Oord et al. 2018).

    Args:
        logits: (rows, candidates).
        own: (rows,) the candidate that is the row's partner.

    Returns:
        The loss and whether the partner has the largest logit, each (rows,).
    """
    loss = torch.nn.functional.cross_entropy(logits, own, reduction="none")  # (rows,)
    return loss, (logits.argmax(-1) == own).float()


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks in order of rank, and back: the sum of what all ranks owe them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.counts = counts
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Ranks average their gradients afterwards, so the sum is the gradient of the mean loss.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[dist.get_rank()], None


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all ranks, (all rows, width), and the place of the first own row."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    sizes = counts.tolist()
    return _GatherRows.apply(rows, sizes), sum(sizes[: dist.get_rank()])


class Objective:
    """A contrastive objective; a subclass says what is held against what.

    `level` says which rows it works on: atoms (`node`) or molecules (`graph`).
    """

    level = "graph"

    def __init__(self, config: LossConfig) -> None:
        """Take temperature, number and source of negatives from the configuration."""
        self.config = config

    def draw(self, batch: MoleculeBatch, stream: Stream) -> Tensor:
        """Draw what `__call__` needs to choose negatives; nothing where no choice is made."""
        return batch.uid[:0]

    def pool(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows that negatives come from and the places of the slot's own rows there."""
        pool, first = gather_rows(other) if self.config.negatives == "ranks" else (other, 0)
        return pool, first + torch.arange(len(other), device=other.device)

    def ebm_nce(self, h: Tensor, pool: Tensor, places: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Hold each row of `h` against those of the pool at `places`, the first its partner's."""
        logits = row_dot(h, pool, torch.stack(places, dim=-1)) / self.config.temperature
        return ebm_nce(logits[:, 0], logits[:, 1:])

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy from `h` to `other`, (rows, dim) each; both (num_graphs,)."""
        raise NotImplementedError


class NodeEBMNCE(Objective):
    """EBM-NCE over atoms: each is held against one other, drawn at random."""

    level = "node"

    def draw(self, batch: MoleculeBatch, stream: Stream) -> Tensor:
        """Draw each atom's negative, (num_atoms,): a place in the slot, or a 32-bit number.

        In the slot every atom is the negative of one other (a permutation); over the ranks, where
        the number of atoms is not known here, `__call__` scales the number.
        """
        uid = batch.uid[batch.batch]
        drawn = words(batch.key, stream, uid, batch.atom_in_graph, 2)  # (num_atoms, 2)
        if self.config.negatives == "ranks":
            return drawn[:, 0]
        key, counted = philox.sort_key(drawn), batch.num_valid_atoms
        place = torch.arange(len(key), device=key.device)
        if counted is not None:  # the others come last, and have what negatives they may
            key = torch.where(place < counted, key - 2**63, place)
        order = torch.argsort(key)  # (num_atoms,)
        if not self.config.exclude_true_pairs:
            return order
        # One random cycle through all atoms: a permutation that leaves none in its place.
        after = (place + 1) % (len(key) if counted is None else counted)
        return torch.empty_like(order).index_copy_(0, order, order.index_select(0, after))

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of the slot's atoms, averaged over each molecule."""
        pool, own = self.pool(other)
        exclude = self.config.exclude_true_pairs
        places = [own]
        if not (exclude and len(pool) == 1):  # a lone atom has nothing to be held against
            over_ranks = self.config.negatives == "ranks"
            places.append(_place_in(pool, own, drawn, exclude) if over_ranks else drawn)
        loss, right = self.ebm_nce(h, pool, places)
        counts = batch.atoms_per_graph
        return segment_mean(loss, batch.batch, counts), segment_mean(right, batch.batch, counts)


class GraphEBMNCE(Objective):
    """EBM-NCE over molecules: each is held against the next `num_shifts` ones."""

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of each molecule; in training a slot's order is random."""
        pool, own = self.pool(other)
        shifts = min(self.config.num_shifts, len(pool) - 1)  # the whole way round is the true pair
        return self.ebm_nce(h, pool, [(own + k) % len(pool) for k in range(shifts + 1)])


class InfoNCE(Objective):
    """InfoNCE over molecules: each is to find its partner among all."""

    def __call__(
        self, h: Tensor, other: Tensor, drawn: Tensor, batch: MoleculeBatch
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of each molecule."""
        pool, own = self.pool(other)
        return info_nce(h @ pool.t() / self.config.temperature, own)


OBJECTIVES = {"node_ebm_nce": NodeEBMNCE, "graph_ebm_nce": GraphEBMNCE, "info_nce": InfoNCE}


def _place_in(pool: Tensor, own: Tensor, drawn: Tensor, exclude_own: bool) -> Tensor:
    """Scale 32-bit numbers to places in the pool, (rows,), stepping over the own ones or not."""
    if not exclude_own:
        return drawn * len(pool) >> 32
    place = drawn * (len(pool) - 1) >> 32
    return place + (place >= own)
