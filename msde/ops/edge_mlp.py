"""An MLP of one hidden layer for each directed edge; its backward pass recomputes that layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msde.ops import dispatch
from msde.ops.cpp import PARTS, call
from msde.ops.graphs import Edges, edge_chunks
from msde.ops.messages import edge_sums

# name -> (code in C++, in-place activation, its input's gradient from the output's and the input)
_ACTIVATIONS: dict[str, tuple[int, Callable, Callable]] = {
    "relu": (1, torch.relu_, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0)),
    "silu": (2, lambda x: nn.functional.silu(x, inplace=True), torch.ops.aten.silu_backward),
}


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
    """Return weight activation(a_source + b_target [+ edge_weight edge_attr]) + bias for each edge.

    Nothing of the hidden layer's size at an edge is kept for the backward pass.

    Args:
        a, b: (num_atoms, width), the shares of the source and of the target in the hidden layer.
        weight, bias: (outputs, width) and (outputs,).
        activation: "relu" or "silu".
        edge_attr, edge_weight: (num_edges, inputs) and (width, inputs), or neither.

    Returns:
        (num_edges, outputs) in the dtype of the weights.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        edge_attr = None if edge_attr is None else edge_attr.to(weight.dtype)
        inputs = (a, b, edge_attr, edge_weight, weight, bias)
        if dispatch.backend(*inputs) == "cpp":
            return _edge_mlp(*inputs, activation, edges.index, edges.row_ptr, edges.ptr)
        # On a GPU, too: cuBLAS multiplies, and a kernel's tiles of a wide network do not fit there.
        # Made here: what is compiled may not keep a new tensor in a gradient.
        reverse = None if dispatch.on_cpu(a) else edges.reverse
        return _Reference.apply(*inputs, edges.index, edges.row_ptr, reverse, activation)


class _Reference(torch.autograd.Function):
    """See `edge_mlp`. The hidden layer is made chunk by chunk, and once more for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        edge_attr: Tensor | None,
        edge_weight: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        index: Tensor,
        row_ptr: Tensor,
        reverse: Tensor | None,
        activation: str,
    ) -> Tensor:
        ctx.save_for_backward(a, b, edge_attr, edge_weight, weight, index, row_ptr, reverse)
        ctx.activation = activation
        _, activate, _ = _ACTIVATIONS[activation]
        out = a.new_empty(index.shape[1], len(bias))
        for rows, source, target in edge_chunks(index):
            hidden = a.index_select(0, source).add_(b.index_select(0, target))
            if edge_attr is not None and edge_weight is not None:
                hidden.addmm_(edge_attr[rows], edge_weight.t())
            torch.addmm(bias, activate(hidden), weight.t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, edge_attr, edge_weight, weight, index, row_ptr, reverse = ctx.saved_tensors
        _, activate, gradient = _ACTIVATIONS[ctx.activation]
        grad_a, grad_b, grad_weight = map(torch.zeros_like, (a, b, weight))
        grad_attr, grad_edge_weight = None, None
        if edge_attr is not None:
            grad_attr, grad_edge_weight = torch.empty_like(edge_attr), torch.zeros_like(edge_weight)
        grad = grad.contiguous()
        for rows, source, target in edge_chunks(index):
            hidden = a.index_select(0, source).add_(b.index_select(0, target))
            if edge_attr is not None:
                hidden.addmm_(edge_attr[rows], edge_weight.t())
            grad_hidden = gradient(torch.mm(grad[rows], weight), hidden)
            grad_weight.addmm_(grad[rows].t(), activate(hidden))
            if reverse is None:
                grad_a.index_add_(0, source, grad_hidden)
                grad_b.index_add_(0, target, grad_hidden)
            else:  # all edges at once; index_add_ would add in an order that changes
                grad_a, grad_b = edge_sums(grad_hidden, row_ptr, reverse)
            if edge_attr is not None:
                torch.mm(grad_hidden, edge_weight, out=grad_attr[rows])
                grad_edge_weight.addmm_(grad_hidden.t(), edge_attr[rows])
        of_weights = grad_edge_weight, grad_weight, grad.sum(0)
        return grad_a, grad_b, grad_attr, *of_weights, None, None, None, None


def _gradient(needed, g, a, b, attr, attr_weight, weight, bias, *rest):
    found = _edge_mlp_grad(g, a, b, attr, attr_weight, weight, *rest)
    ga, gb, g_attr, g_attr_weight, g_weight = found
    of_attr = (None, None) if attr is None else (g_attr, g_attr_weight)
    return (ga, gb, *of_attr, g_weight, g.sum(0))


def _cpp(
    a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None, weight: Tensor,
    bias: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor,
) -> Tensor:  # fmt: skip
    outputs, width = weight.shape
    inputs = 0 if attr is None else attr.shape[1]
    out = a.new_empty(index.shape[1], outputs)
    call(
        "edge_mlp", a, b, attr, attr_weight, weight, bias, index, width, inputs, outputs,
        _ACTIVATIONS[activation][0], index.shape[1], out,
    )  # fmt: skip
    return out


def _grad_cpp(
    g: Tensor, a: Tensor, b: Tensor, attr: Tensor | None, attr_weight: Tensor | None,
    weight: Tensor, activation: str, index: Tensor, row_ptr: Tensor, ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of a, b, attr, attr_weight and weight; without attr two are empty."""
    outputs, width = weight.shape
    inputs = 0 if attr is None else attr.shape[1]
    ga, gb, g_weight = map(torch.empty_like, (a, b, weight))
    g_attr, g_attr_weight = a.new_empty(index.shape[1], inputs), a.new_empty(width, inputs)
    edge_ptr = row_ptr.index_select(0, ptr)  # (num_graphs + 1,) offsets of the molecules' edges
    parts = a.new_empty(PARTS, outputs + inputs, width)
    call(
        "edge_mlp_grad", g, a, b, attr, attr_weight, weight, index, width, inputs, outputs,
        _ACTIVATIONS[activation][0], index.shape[1], ptr, edge_ptr, ptr.shape[0] - 1, ga, gb,
        g_weight, g_attr, g_attr_weight, parts, PARTS,
    )  # fmt: skip
    return ga, gb, g_attr, g_attr_weight, g_weight


_edge_mlp = dispatch.register("edge_mlp", _cpp, gradient=_gradient)
_edge_mlp_grad = dispatch.register(
    "edge_mlp_grad", _grad_cpp, gradient=dispatch.no_second_derivative
)
