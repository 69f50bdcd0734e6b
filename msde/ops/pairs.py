"""Sums and attention over the unordered pairs of atoms of the same molecule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msde.ops import dispatch, triton
from msde.ops.cpp import call
from msde.ops.graphs import Pairs, PairWeights


def pair_sum(weight: PairWeights, x: Tensor) -> Tensor:
    """Return y_ci = sum over pairs (i, j) of weight_pc x_cj, each pair counting both ways.

    Args:
        weight: of the dtype of x.
        x: (channels, num_atoms, width), like the result.
    """
    if dispatch.backend(weight.packed, x, under_autocast=True) != "torch":
        return _pair_sum(weight.packed, x, *weight.pairs.tensors)
    layout = weight.pairs.padded
    return layout.pack_atoms(torch.bmm(weight.padded, layout.pad_atoms(x)))


# Both operators are bilinear: their gradients are made of one another.
def _pair_sum_gradient(needed, g, weight, x, *pairs):
    g_weight = _pair_dot(x, g, *pairs) if needed[0] else None
    return g_weight, _pair_sum(weight, g, *pairs) if needed[1] else None


def _pair_dot_gradient(needed, of_weight, x, g, *pairs):
    return _pair_sum(of_weight, g, *pairs), _pair_sum(of_weight, x, *pairs)


def _pair_sum_cpp(
    weight: Tensor, x: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Sum over pairs: weight (num_pairs, channels), x (channels, num_atoms, width)."""
    out, molecules = torch.empty_like(x), ptr.shape[0] - 1
    call("pair_sum", weight, x, index, ptr, pair_ptr, molecules, out, x.shape[0], x.shape[2])
    return out


def _pair_sum_triton(weight, x, index, ptr, pair_ptr, graph):
    (channels, atoms, width), out = x.shape, torch.empty_like(x)
    block = triton.power_of_2(width)
    triton.kernels("pairs").pair_sum[(atoms, channels)](
        weight, x, graph, ptr, pair_ptr, out, atoms, channels, width, block,
        num_warps=triton.warps(block),
    )  # fmt: skip
    return out


def _pair_dot_cpp(
    x: Tensor, g: Tensor, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    """Return the gradient of the weights of `pair_sum`, (num_pairs, channels)."""
    out, molecules = x.new_empty(index.shape[1], x.shape[0]), ptr.shape[0] - 1
    call("pair_dot", x, g, index, ptr, pair_ptr, molecules, out, x.shape[0], x.shape[2])
    return out


def _pair_dot_triton(x, g, index, ptr, pair_ptr, graph):
    (channels, atoms, width), num_pairs = x.shape, index.shape[1]
    out = x.new_empty(num_pairs, channels)
    if num_pairs:
        triton.kernels("pairs").pair_dot[(triton.cdiv(num_pairs, triton.TILE), channels)](
            x, g, index, out, num_pairs, atoms, channels, width, triton.power_of_2(width),
            triton.TILE,
        )  # fmt: skip
    return out


_pair_sum = dispatch.register(
    "pair_sum", _pair_sum_cpp, _pair_sum_triton, gradient=_pair_sum_gradient
)
_pair_dot = dispatch.register(
    "pair_dot", _pair_dot_cpp, _pair_dot_triton, gradient=_pair_dot_gradient
)


def pair_attention(q: Tensor, k: Tensor, chunk: int, pairs: Pairs) -> Tensor:
    """Return the mean of tanh(q_i . k_j / sqrt(chunk)) over heads and both directions of a pair.

    Args:
        q, k: (channels, num_atoms, heads * chunk).

    Returns:
        (num_pairs, channels).
    """
    if dispatch.backend(q, k, under_autocast=True) != "torch":
        return _pair_attention(q, k, chunk, *pairs.tensors)

    def chunks(x: Tensor) -> Tensor:  # (channels * num_graphs, heads, size, chunk)
        return pairs.padded.pad_atoms(x).unflatten(-1, (-1, chunk)).transpose(1, 2)

    logits = torch.matmul(chunks(q) / math.sqrt(chunk), chunks(k).transpose(-1, -2))
    return pairs.padded.pack_pairs(torch.tanh(logits).mean(1))


def _pair_attention_gradient(needed, g, *inputs):
    return _pair_attention_grad(g, *inputs)


def _pair_attention_cpp(
    q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor, graph: Tensor
) -> Tensor:
    out = q.new_empty(index.shape[1], q.shape[0])
    call(
        "pair_attention", q, k, index, ptr, pair_ptr, ptr.shape[0] - 1, out, q.shape[0], q.shape[2],
        chunk,
    )  # fmt: skip
    return out


def _pair_attention_triton(q, k, chunk, index, ptr, pair_ptr, graph):
    (channels, atoms, width), num_pairs = q.shape, index.shape[1]
    out = q.new_empty(num_pairs, channels)
    if num_pairs:
        triton.kernels("pairs").pair_attention[(triton.cdiv(num_pairs, triton.TILE), channels)](
            q, k, index, out, num_pairs, atoms, channels, 1 / math.sqrt(chunk), width // chunk,
            chunk, triton.power_of_2(chunk), triton.TILE,
        )  # fmt: skip
    return out


def _pair_attention_grad_cpp(
    g: Tensor, q: Tensor, k: Tensor, chunk: int, index: Tensor, ptr: Tensor, pair_ptr: Tensor,
    graph: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    gq, gk = torch.empty_like(q), torch.empty_like(k)
    call(
        "pair_attention_grad", g, q, k, index, ptr, pair_ptr, ptr.shape[0] - 1, gq, gk, q.shape[0],
        q.shape[2], chunk,
    )  # fmt: skip
    return gq, gk


def _pair_attention_grad_triton(g, q, k, chunk, index, ptr, pair_ptr, graph):
    (channels, atoms, width), gq, gk = q.shape, torch.empty_like(q), torch.empty_like(k)
    block = triton.power_of_2(chunk)
    triton.kernels("pairs").pair_attention_grad[(atoms, channels)](
        g, q, k, graph, ptr, pair_ptr, gq, gk, atoms, channels, 1 / math.sqrt(chunk),
        width // chunk, chunk, block, num_warps=triton.warps(block),
    )  # fmt: skip
    return gq, gk


_pair_attention = dispatch.register(
    "pair_attention", _pair_attention_cpp, _pair_attention_triton, gradient=_pair_attention_gradient
)
_pair_attention_grad = dispatch.register(
    "pair_attention_grad",
    _pair_attention_grad_cpp,
    _pair_attention_grad_triton,
    gradient=dispatch.no_second_derivative,
)
