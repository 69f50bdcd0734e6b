"""Moves of atoms and attention over all pairs of a molecule's atoms, without features of edges."""

from __future__ import annotations

import torch
from torch import Tensor

from msde.ops import dispatch
from msde.ops.cpp import call


def all_pairs_fits(*tensors: Tensor) -> bool:
    """Return whether `all_pairs` takes these tensors here: on a CPU, where no gradient is kept."""
    return not torch.is_grad_enabled() and dispatch.backend(*tensors) == "cpp"


def all_pairs(
    pos: Tensor,
    a: Tensor,
    b: Tensor,
    known: Tensor,
    attr_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    queries: tuple[Tensor, ...] | None,
    num_heads: int,
    centres: Tensor,
    ptr: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return the moves of atoms, (num_atoms, 3), and attention, (num_atoms, heads * head_dim).

    With d_ij, the root of the squared distance plus epsilon, the features of each edge j -> i are

        e_ij = weight silu(a_j + b_i + attr_weight [known_ij, Gaussians of log(1 + d_ij)]) + bias.

    The last number of e_ij, times (x_i - x_j) / (1 + d_ij) and summed over j, is the move of atom
    i; the others enter the attention of `edge_attention`. It equals `edge_mlp` and `edge_attention`
    on the edges between all atoms but for rounding. The features are not kept, so it has no
    gradient; see `all_pairs_fits`.

    Args:
        pos: (num_atoms, 3).
        a, b: (num_atoms, width), the shares of the source and of the target in the hidden layer.
        known: (num_pairs, inputs), the same for i -> j and j -> i; molecule after molecule, the
            pairs i < j of each sorted by j and then i.
        attr_weight: (width, inputs + num_gaussians).
        weight, bias: (heads * head_dim + 1, width) and (heads * head_dim + 1,).
        queries: q, k and v, (num_atoms, heads * head_dim) each; None: there is no attention, and
            the weight has one row.
        num_heads: heads of `queries`.
        centres: (num_gaussians,) of the Gaussians, evenly spaced from 0; as wide as their spacing.
        ptr: (num_graphs + 1,) offsets of the molecules' atoms.
        epsilon: added below the root.
    """
    q, k, v = queries or (None, None, None)
    last, count = centres[-1].item(), len(centres)
    return _all_pairs(
        pos, a, b, known, attr_weight, weight, bias, q, k, v, ptr,
        0 if q is None else num_heads, last / (count - 1), epsilon,
    )  # fmt: skip


def _cpp(
    pos: Tensor, a: Tensor, b: Tensor, known: Tensor, attr_weight: Tensor, weight: Tensor,
    bias: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor | None, ptr: Tensor, heads: int,
    spacing: float, epsilon: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    moves, width = torch.empty_like(pos), a.shape[1]
    attended = pos.new_empty(len(pos), weight.shape[0] - 1)
    counts = ptr[1:] - ptr[:-1]
    pair_ptr = torch.zeros_like(ptr)
    torch.cumsum(counts * (counts - 1) // 2, 0, out=pair_ptr[1:])
    call(
        "all_pairs", pos, a, b, known, attr_weight, weight, bias, q, k, v, ptr, pair_ptr,
        ptr.shape[0] - 1, width, known.shape[1], attr_weight.shape[1] - known.shape[1], heads,
        0 if q is None else (weight.shape[0] - 1) // heads, spacing, epsilon, moves, attended,
    )  # fmt: skip
    return moves, attended


_all_pairs = dispatch.register("all_pairs", _cpp)
