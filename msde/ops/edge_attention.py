"""Multi-head attention of each atom over the edges into it (Shi et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msde.ops import dispatch, triton
from msde.ops.cpp import call
from msde.ops.graphs import Edges
from msde.ops.segments import segment_softmax, segment_sum


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, keep: Tensor | None, edges: Edges, num_heads: int
) -> Tensor:
    """Return multi-head attention of each atom over the edges into it, (num_atoms, width).

    y_i = sum over edges j -> i of keep * softmax(q_i . (k_j + e_ij) / sqrt(head_dim)) (v_j + e_ij)

    Args:
        q, k, v: (num_atoms, width), the heads one after another.
        e: (num_edges, width).
        keep: (num_edges, num_heads) dropout's factor of each attention weight, or None.
    """
    if dispatch.backend(q, k, v, e, keep, under_autocast=True) != "torch":
        return _edge_attention(q, k, v, e, keep, num_heads, *edges.tensors)[0]
    source, target = edges.index
    heads = (-1, num_heads, q.shape[1] // num_heads)
    k = k.index_select(0, source).add(e).view(heads)  # (num_edges, heads, head_dim)
    v = v.index_select(0, source).add(e).view(heads)
    q = q.index_select(0, target).view(heads)
    logits = (q * k).sum(-1) / math.sqrt(heads[2])  # (num_edges, num_heads)
    # At least float32: a sum of many exponentials is normalised.
    weight = segment_softmax(
        logits.to(torch.promote_types(q.dtype, torch.float32)), target, edges.num_atoms
    )
    weight = weight if keep is None else weight * keep
    message = (v * weight.unsqueeze(-1).to(v.dtype)).flatten(1)  # (num_edges, width)
    return segment_sum(message, target, edges.num_atoms)


def _gradient(needed, g, *inputs):
    *inputs, alpha = inputs
    return _edge_attention_grad(g, alpha, *inputs)


def _cpp(
    q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None, heads: int,
    index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the attended values, (num_atoms, width), and the attention, (num_edges, heads)."""
    out, alpha = torch.empty_like(q), q.new_empty(edge.shape[0], heads)
    call(
        "edge_attention", q, k, v, edge, keep, row_ptr, index, row_ptr.shape[0] - 1, alpha, out,
        heads, q.shape[1] // heads,
    )  # fmt: skip
    return out, alpha


def _launch(heads: int, width: int) -> tuple[tuple[int, ...], int]:
    """Return the sizes that Triton's kernels take, and the warps of a program, of an atom each."""
    dim = width // heads
    all_heads, block = triton.power_of_2(heads), triton.power_of_2(dim)
    return (heads, dim, all_heads, block), triton.warps(all_heads * block)


def _triton(q, k, v, edge, keep, heads, index, row_ptr, ptr, reverse):
    (atoms, width), out = q.shape, torch.empty_like(q)
    alpha, sizes, num_warps = q.new_empty(len(edge), heads), *_launch(heads, width)
    triton.kernels("edge_attention").edge_attention[(atoms,)](
        q, k, v, edge, q if keep is None else keep, row_ptr, index, alpha, out,
        1 / math.sqrt(width // heads), keep is not None, *sizes, num_warps=num_warps,
    )  # fmt: skip
    return out, alpha


def _grad_cpp(
    g: Tensor, alpha: Tensor, q: Tensor, k: Tensor, v: Tensor, edge: Tensor, keep: Tensor | None,
    heads: int, index: Tensor, row_ptr: Tensor, ptr: Tensor, reverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k, v and edge."""
    gq, gk, gv, ge = map(torch.empty_like, (q, k, v, edge))
    call(
        "edge_attention_grad", g, q, k, v, edge, keep, alpha, row_ptr, index, ptr,
        ptr.shape[0] - 1, gq, gk, gv, ge, heads, q.shape[1] // heads,
    )  # fmt: skip
    return gq, gk, gv, ge


def _grad_triton(g, alpha, q, k, v, edge, keep, heads, index, row_ptr, ptr, reverse):
    (atoms, width), slopes = q.shape, torch.empty_like(alpha)
    gq, gk, gv, ge = map(torch.empty_like, (q, k, v, edge))
    kernels, factor = triton.kernels("edge_attention"), q if keep is None else keep
    sizes, num_warps = _launch(heads, width)
    kernels.edge_attention_grad[(atoms,)](
        g, q, k, v, edge, factor, alpha, row_ptr, index, gq, ge, slopes,
        1 / math.sqrt(width // heads), keep is not None, *sizes, num_warps=num_warps,
    )  # fmt: skip
    kernels.edge_attention_source_grad[(atoms,)](
        g, q, factor, alpha, slopes, row_ptr, index, reverse, gk, gv, keep is not None, *sizes,
        num_warps=num_warps,
    )  # fmt: skip
    return gq, gk, gv, ge


_edge_attention = dispatch.register("edge_attention", _cpp, _triton, gradient=_gradient)
_edge_attention_grad = dispatch.register(
    "edge_attention_grad", _grad_cpp, _grad_triton, gradient=dispatch.no_second_derivative
)
