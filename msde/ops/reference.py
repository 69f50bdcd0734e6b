"""The ops in plain torch: any device, any floating dtype, any order of derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
    edge_index: Tensor,
    activation: str,
    edge_attr: Tensor | None = None,
    edge_weight: Tensor | None = None,
) -> Tensor:
    """Return weight activation(a_source + b_target [+ edge_weight edge_attr]) + bias for each edge.

    Nothing of the hidden layer's size at an edge is kept for the backward pass.

    Args:
        a, b: (num_atoms, width) what the source and the target contribute.
        weight, bias: (outputs, width) and (outputs,).
        activation: "relu" or "silu".
        edge_attr, edge_weight: (num_edges, inputs) and (width, inputs), or neither.

    Returns:
        (num_edges, outputs) in the dtype of the weights.
    """
    dtype = weight.dtype
    with torch.autocast(a.device.type, enabled=False):
        edge_attr = None if edge_attr is None else edge_attr.to(dtype)
        return _EdgeMLP.apply(
            a.to(dtype),
            b.to(dtype),
            edge_attr,
            edge_weight,
            weight,
            bias,
            edge_index,
            activation,
        )


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


def edge_statistics(a: Tensor, b: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of a_source + b_target over the edges, each (width,).

    From sums at the atoms, centred first: var = E[a'^2] + E[b'^2] + 2 E[a' b'].
    """
    source, target = edge_index
    num_edges = edge_index.shape[1]
    out_degree = torch.bincount(source, minlength=len(a)).to(a.dtype)
    in_degree = torch.bincount(target, minlength=len(b)).to(b.dtype)
    mean_a, mean_b = out_degree @ a / num_edges, in_degree @ b / num_edges
    a, b = a - mean_a, b - mean_b
    squares = out_degree @ a.square() + in_degree @ b.square()
    products = (_SumOverEdges.apply(a, edge_index) * b).sum(0)
    # Rounding may leave a variance of zero a little below it.
    return mean_a + mean_b, ((squares + 2 * products) / num_edges).clamp(min=0)


def edge_norm(
    a: Tensor, b: Tensor, norm: nn.BatchNorm1d, edge_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a', b' with a'_source + b'_target = norm(a_source + b_target) for every edge.

    Normalising is an affine map, so it can be made at the atoms. The running statistics are updated
    as BatchNorm1d does. With fewer than two edges there are no statistics of the batch, and the
    running ones are used.

    Args:
        a, b: (num_atoms, width) what the source and the target contribute.
    """
    num_edges = edge_index.shape[1]
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(norm.weight.dtype), b.to(norm.weight.dtype)
        if norm.training and num_edges > 1:
            mean, variance = edge_statistics(a, b, edge_index)
            with torch.no_grad():
                unbiased = variance * (num_edges / (num_edges - 1))
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(unbiased, norm.momentum)
                norm.num_batches_tracked += 1
        else:
            mean, variance = norm.running_mean, norm.running_var
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return a * scale, torch.addcmul(norm.bias - mean * scale, b, scale)


class Interpolation:
    """Cubic Lagrange interpolation in a table of rows at equally spaced points.

    Holds which four rows each point takes with which weights, and the transpose of that, so that
    both directions are sums over bags of rows.
    """

    def __init__(self, position: Tensor, keep: Tensor, num_rows: int) -> None:
        """Prepare interpolation at `position`, (num_points,), in units of the spacing.

        Position p lies between the rows floor(p) + 1 and floor(p) + 2: the first row stands at -1.
        Where `keep`, (num_points,), is false the result is zero.
        """
        # What is not a number must not become a row; its weights stay what they are.
        first = position.nan_to_num().floor().clamp(0, num_rows - 4)  # (num_points,)
        s = position - first  # (num_points,) in [0, 1]
        weights = (
            -s * (s - 1) * (s - 2) / 6,
            (s + 1) * (s - 1) * (s - 2) / 2,
            -(s + 1) * s * (s - 2) / 2,
            (s + 1) * s * (s - 1) / 6,
        )
        self.weight = torch.stack(weights, dim=-1) * keep.unsqueeze(-1)  # (num_points, 4)
        self.row = first.long().unsqueeze(-1) + torch.arange(4, device=first.device)
        order = torch.argsort(self.row.flatten(), stable=True)  # (num_points * 4,)
        self.point_of = order // 4
        self.weight_of = self.weight.flatten()[order]
        counts = torch.bincount(self.row.flatten(), minlength=num_rows)
        self.offsets = counts.cumsum(0) - counts  # (num_rows,) first entry of each row's bag

    def __call__(self, table: Tensor) -> Tensor:
        """Interpolate in `table`, (num_rows, width): (num_points, width)."""
        return _Interpolate.apply(table, self)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Interpolation) -> Tensor:
        ctx.at = at
        return nn.functional.embedding_bag(
            at.row, table, per_sample_weights=at.weight.to(table.dtype), mode="sum"
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        at = ctx.at
        grad_table = nn.functional.embedding_bag(
            at.point_of,
            grad.contiguous(),
            at.offsets,
            per_sample_weights=at.weight_of.to(grad.dtype),
            mode="sum",
        )
        return grad_table, None
