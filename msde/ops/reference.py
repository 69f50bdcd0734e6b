"""The ops in plain torch: any device, any floating dtype, any order of derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msde.ops.groups import EdgeCodes, Edges, Pairs, PairWeights

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "shifted_softplus": lambda x: nn.functional.softplus(x) - math.log(2),
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """See `msde.ops.linear`."""
    if weight.dim() != 3:
        y = nn.functional.linear(x, weight, bias)
    elif x.dim() == 2:
        # One product with the stacked weights instead of one a channel.
        y = nn.functional.linear(x, weight.flatten(0, 1)).unflatten(1, weight.shape[:2])
        y = y.transpose(0, 1)
    else:
        y = torch.bmm(x, weight.mT)
    if weight.dim() == 3 and bias is not None:
        y = y + bias.unsqueeze(1)
    return ACTIVATIONS[activation](y) if plus is None else y + plus


def fourier_features(v: Tensor, frequency: Tensor) -> Tensor:
    """Return [sin(2 pi v w), cos(2 pi v w)] of v, (...,): (..., 2 * num_frequencies)."""
    angle = v.unsqueeze(-1) * (2 * math.pi * frequency)  # (..., num_frequencies)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def fourier_linear(v: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `msde.ops.fourier_linear`."""
    return nn.functional.linear(fourier_features(v, frequency).flatten(1), weight, bias)


def segment_sum(rows: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of each segment, (num_segments, ...); an empty segment gives zero."""
    out = rows.new_zeros(num_segments, *rows.shape[1:])
    return out.index_add_(0, segment, rows)


def segment_mean(rows: Tensor, segment: Tensor, counts: Tensor) -> Tensor:
    """Average the rows of each segment; an empty segment gives zero.

    Args:
        counts: (num_segments,) number of rows of each segment.
    """
    total = segment_sum(rows, segment, len(counts))
    return total / counts.clamp(min=1).view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype)


def segment_softmax(logits: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Normalise exp(logits) to sum to one in each segment, column by column.

    Args:
        logits: (rows, columns).
        segment: (rows,) segment of each row.
    """
    index = segment.unsqueeze(-1).expand_as(logits)
    # Subtracting the maximum changes nothing but the range, so no gradient is owed to it.
    top = logits.new_full((num_segments, logits.shape[1]), float("-inf"))
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    exponentials = torch.exp(logits - top.index_select(0, segment))
    total = segment_sum(exponentials, segment, num_segments)
    return exponentials / total.index_select(0, segment)


class _FilterConv(torch.autograd.Function):
    """y_i = sum_j W_ij x_j over unordered pairs: linear in x and W, self-adjoint in x.

    Written out because autograd would keep two more edge-sized tensors and make two more passes;
    its backward is made of the same differentiable pieces, so forces can be trained.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pair_index: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, pair_index)
        i, j = pair_index
        out = torch.zeros_like(x)
        out.index_add_(0, i, x.index_select(0, j).mul_(weight))
        out.index_add_(0, j, x.index_select(0, i).mul_(weight))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight, pair_index = ctx.saved_tensors
        i, j = pair_index
        grad_x = _FilterConv.apply(grad, weight, pair_index) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            both = (x, grad)
            x_i, grad_i = (rows.index_select(0, i) for rows in both)
            x_j, grad_j = (rows.index_select(0, j) for rows in both)
            grad_weight = torch.addcmul(x_i * grad_j, x_j, grad_i)
        return grad_x, grad_weight, None


def filter_conv(x: Tensor, weight: Tensor, pair_index: Tensor) -> Tensor:
    """Return y_i = sum over pairs (i, j) of weight_ij * x_j, each pair counting both ways.

    The continuous-filter convolution of SchNet (Schuett et al. 2017) with the filter computed once
    for an unordered pair.

    Args:
        x: (num_atoms, num_filters).
        weight: (num_pairs, num_filters), of the dtype of x.
        pair_index: (2, num_pairs), every unordered pair once.
    """
    return _FilterConv.apply(x, weight, pair_index)


CHUNK_ROWS = 2048  # edges handled together on a CPU, so that they stay in cache

# name -> (in-place activation, gradient of the input from that of the output and the input)
_ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "relu": (torch.relu_, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0)),
    "silu": (lambda x: nn.functional.silu(x, inplace=True), torch.ops.aten.silu_backward),
}


def _edge_chunks(edge_index: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Cut the edges into (rows, sources, targets); a GPU takes them all at once."""
    num_edges = edge_index.shape[1]
    rows = CHUNK_ROWS if edge_index.device.type == "cpu" else max(1, num_edges)
    return [
        (slice(first, first + rows), *edge_index[:, first : first + rows])
        for first in range(0, num_edges, rows)
    ]


class _EdgeMLP(torch.autograd.Function):
    """See `edge_mlp`. The backward pass makes the hidden layer again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        edge_attr: Tensor | None,
        edge_weight: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        edge_index: Tensor,
        activation: str,
    ) -> Tensor:
        ctx.save_for_backward(a, b, edge_attr, edge_weight, weight, edge_index)
        ctx.activation = activation
        activate, _ = _ACTIVATIONS[activation]
        out = a.new_empty(edge_index.shape[1], len(bias))
        for rows, source, target in _edge_chunks(edge_index):
            hidden = a.index_select(0, source).add_(b.index_select(0, target))
            if edge_attr is not None and edge_weight is not None:
                hidden.addmm_(edge_attr[rows], edge_weight.t())
            torch.addmm(bias, activate(hidden), weight.t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, edge_attr, edge_weight, weight, edge_index = ctx.saved_tensors
        activate, gradient = _ACTIVATIONS[ctx.activation]
        grad_a, grad_b, grad_weight = map(torch.zeros_like, (a, b, weight))
        grad_attr, grad_edge_weight = None, None
        if edge_attr is not None:
            grad_attr, grad_edge_weight = torch.empty_like(edge_attr), torch.zeros_like(edge_weight)
        grad = grad.contiguous()
        for rows, source, target in _edge_chunks(edge_index):
            hidden = a.index_select(0, source).add_(b.index_select(0, target))
            if edge_attr is not None:
                hidden.addmm_(edge_attr[rows], edge_weight.t())
            grad_hidden = gradient(torch.mm(grad[rows], weight), hidden)
            grad_weight.addmm_(grad[rows].t(), activate(hidden))
            grad_a.index_add_(0, source, grad_hidden)
            grad_b.index_add_(0, target, grad_hidden)
            if edge_attr is not None:
                torch.mm(grad_hidden, edge_weight, out=grad_attr[rows])
                grad_edge_weight.addmm_(grad_hidden.t(), edge_attr[rows])
        return grad_a, grad_b, grad_attr, grad_edge_weight, grad_weight, grad.sum(0), None, None


def edge_mlp(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Edges,
    activation: str,
    edge_attr: Tensor | None = None,
    edge_weight: Tensor | None = None,
) -> Tensor:
    """See `msde.ops.edge_mlp`; the hidden layer is made in chunks that stay in cache."""
    return _EdgeMLP.apply(a, b, edge_attr, edge_weight, weight, bias, edges.index, activation)


class _SumOverEdges(torch.autograd.Function):
    """Linear, and its own transpose with the edges turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        ctx.save_for_backward(edge_index)
        out = torch.zeros_like(x)
        for _, source, target in _edge_chunks(edge_index):
            out.index_add_(0, target, x.index_select(0, source))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (edge_index,) = ctx.saved_tensors
        return _SumOverEdges.apply(grads[0], edge_index.flip(0)), None


def sum_over_edges(x: Tensor, index: Tensor) -> Tensor:
    """See `msde.ops.sum_over_edges`."""
    return _SumOverEdges.apply(x, index)


def gin_message(x: Tensor, table: Tensor, eps: Tensor, codes: EdgeCodes, edges: Edges) -> Tensor:
    """See `msde.ops.gin_message`."""
    source, target = edges.index
    bonds = table.index_select(0, codes.code)  # (num_edges, width)
    message = torch.relu(x.index_select(0, source) + bonds)  # (num_edges, width)
    return (1 + eps) * x + segment_sum(message, target, len(x))


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, keep: Tensor | None, edges: Edges, num_heads: int
) -> Tensor:
    """See `msde.ops.edge_attention`."""
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


def frame_mean(b: Tensor, frames: Tensor, edges: Edges) -> Tensor:
    """See `msde.ops.frame_mean`."""
    vectors = (b.unsqueeze(-1) * frames).sum(1)  # (num_edges, 3)
    return segment_mean(vectors, edges.index[1], edges.degree)


def pair_sum(weight: PairWeights, x: Tensor) -> Tensor:
    """See `msde.ops.pair_sum`."""
    layout = weight.pairs.padded
    return layout.pack_atoms(torch.bmm(weight.padded, layout.pad_atoms(x)))


def pair_attention(q: Tensor, k: Tensor, chunk: int, pairs: Pairs) -> Tensor:
    """See `msde.ops.pair_attention`."""

    def chunks(x: Tensor) -> Tensor:  # (channels * num_graphs, heads, size, chunk)
        return pairs.padded.pad_atoms(x).unflatten(-1, (-1, chunk)).transpose(1, 2)

    logits = torch.matmul(chunks(q) / math.sqrt(chunk), chunks(k).transpose(-1, -2))
    return pairs.padded.pack_pairs(torch.tanh(logits).mean(1))


def row_dot(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """See `msde.ops.row_dot`."""
    rows = y.index_select(0, at.flatten()).unflatten(0, at.shape)  # (rows, count, width)
    return (x.unsqueeze(1) * rows).sum(-1)
