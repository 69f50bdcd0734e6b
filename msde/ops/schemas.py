"""The operators `msde::*`: what each takes and returns, and the shapes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_KNOTS = "Tensor first, Tensor weight, Tensor order, Tensor cell_ptr"
_CODES = "Tensor code, Tensor code_ptr, Tensor code_order"
_PAIRS = "Tensor index, Tensor ptr, Tensor pair_ptr, Tensor graph"
_EDGES = "Tensor index, Tensor row_ptr, Tensor ptr, Tensor reverse"
_EDGE_MLP = "Tensor a, Tensor b, Tensor? attr, Tensor? attr_weight, Tensor weight"
SCHEMAS = {
    "linear": (
        "(Tensor x, Tensor weight, Tensor? bias, str? activation, Tensor? plus)"
        " -> (Tensor, Tensor)"
    ),
    "linear_grad": (
        "(Tensor g, Tensor? h, Tensor x, Tensor weight, str? activation, bool need_x)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "batch_norm": (
        "(Tensor x, Tensor weight, Tensor bias, bool relu, float eps, Tensor? counted)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "batch_norm_grad": (
        "(Tensor g, Tensor x, Tensor weight, Tensor bias, bool relu, float eps, Tensor? counted, "
        "Tensor mean, Tensor variance) -> (Tensor, Tensor, Tensor)"
    ),
    "edge_norm": (
        "(Tensor a, Tensor b, Tensor weight, Tensor bias, float eps, Tensor index, Tensor row_ptr)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "edge_norm_grad": (
        "(Tensor of_a, Tensor of_b, Tensor a, Tensor b, Tensor weight, float eps, Tensor index, "
        "Tensor row_ptr, Tensor means, Tensor variance) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "row_dot": "(Tensor x, Tensor y, Tensor at) -> Tensor",
    "row_dot_grad": "(Tensor g, Tensor x, Tensor y, Tensor at) -> (Tensor, Tensor)",
    "fourier_linear": "(Tensor v, Tensor frequency, Tensor weight, Tensor bias) -> Tensor",
    "fourier_linear_grad": "(Tensor g, Tensor v, Tensor frequency) -> (Tensor, Tensor)",
    "edge_geometry": (
        "(Tensor pos, Tensor index, float collinear, float epsilon)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "frame_mean": "(Tensor b, Tensor frames, Tensor row_ptr) -> Tensor",
    "frame_mean_grad": "(Tensor g, Tensor frames, Tensor row_ptr) -> Tensor",
    "words": "(Tensor uid, Tensor? item, int count, int stream, int[] key) -> Tensor",
    "normals": "(Tensor uid, Tensor item, int count, int stream, int[] key) -> Tensor",
    "sort_groups": "(Tensor key, int num_groups) -> (Tensor, Tensor)",
    "interpolated_conv": f"(Tensor x, Tensor table, {_KNOTS}, {_PAIRS}) -> Tensor",
    "interpolated_table_grad": f"(Tensor x, Tensor g, {_KNOTS}, {_PAIRS}) -> Tensor",
    "pair_sum": f"(Tensor weight, Tensor x, {_PAIRS}) -> Tensor",
    "pair_dot": f"(Tensor x, Tensor g, {_PAIRS}) -> Tensor",
    "pair_attention": f"(Tensor q, Tensor k, int chunk, {_PAIRS}) -> Tensor",
    "pair_attention_grad": (
        f"(Tensor g, Tensor q, Tensor k, int chunk, {_PAIRS}) -> (Tensor, Tensor)"
    ),
    "sum_over_edges": "(Tensor x, Tensor index, Tensor row_ptr) -> Tensor",
    "gin_message": (
        f"(Tensor x, Tensor table, Tensor eps, {_CODES}, Tensor index, Tensor row_ptr) -> Tensor"
    ),
    "gin_message_grad": (
        f"(Tensor g, Tensor x, Tensor table, Tensor eps, {_CODES}, Tensor index, Tensor row_ptr)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "edge_attention": (
        f"(Tensor q, Tensor k, Tensor v, Tensor edge, Tensor? keep, int heads, {_EDGES})"
        " -> (Tensor, Tensor)"
    ),
    "edge_attention_grad": (
        "(Tensor g, Tensor alpha, Tensor q, Tensor k, Tensor v, Tensor edge, Tensor? keep, "
        f"int heads, {_EDGES}) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "edge_mlp": (
        f"({_EDGE_MLP}, Tensor bias, str activation, {_EDGES}) -> Tensor"
    ),
    "edge_mlp_grad": (
        f"(Tensor g, {_EDGE_MLP}, str activation, {_EDGES}) -> Tensor[]"
    ),
}  # fmt: skip


def _like(x: Tensor) -> Tensor:
    """Return memory for the shape of x: what the kernels return is contiguous, whatever x is."""
    return x.new_empty(x.shape)


def _layer(x: Tensor, weight: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*weight.shape[:-2], x.shape[-2], weight.shape[-2])
    return y, y.new_empty(y.shape if activation == "silu" else 0)


FAKES: dict[str, Callable[..., Any]] = {
    "linear": lambda x, weight, bias, activation, plus: _layer(x, weight, activation),
    "linear_grad": lambda g, h, x, weight, activation, need_x: (
        x.new_empty(x.shape if need_x else 0), _like(weight), x.new_empty(weight.shape[:-1])
    ),
    "batch_norm": lambda x, weight, bias, *_: (_like(x), _like(weight), _like(weight)),
    "batch_norm_grad": lambda g, x, weight, bias, *_: (_like(x), _like(weight), _like(bias)),
    "edge_norm": lambda a, b, weight, *_: (
        _like(a), _like(b), a.new_empty(2, a.shape[1]), _like(weight)
    ),
    "edge_norm_grad": lambda of_a, of_b, a, b, weight, *_: (
        _like(a), _like(b), _like(weight), _like(weight)
    ),
    "row_dot": lambda x, y, at: x.new_empty(at.shape),
    "row_dot_grad": lambda g, x, y, *_: (_like(x), _like(y)),
    "fourier_linear": lambda v, frequency, weight, bias: v.new_empty(v.shape[0], weight.shape[0]),
    "fourier_linear_grad": lambda g, v, frequency: (
        v.new_empty(g.shape[1], 2 * v.shape[1] * frequency.shape[0]), v.new_empty(g.shape[1])
    ),
    "edge_geometry": lambda pos, index, *_: tuple(
        pos.new_empty(index.shape[1], *shape) for shape in ((3, 3), (2,), (2,), (2,), ())
    ),
    "frame_mean": lambda b, frames, row_ptr: b.new_empty(row_ptr.shape[0] - 1, 3),
    "frame_mean_grad": lambda g, frames, row_ptr: g.new_empty(frames.shape[0], 3),
    "words": lambda uid, item, count, *_: uid.new_empty(uid.shape[0], count),
    "normals": lambda uid, item, count, *_: uid.new_empty(
        uid.shape[0], count, dtype=torch.float32
    ),
    "sort_groups": lambda key, num_groups: (key.new_empty(num_groups + 1), _like(key)),
    "interpolated_conv": lambda x, *_: _like(x),
    "interpolated_table_grad": lambda x, g, first, weight, order, cell_ptr, *_: x.new_empty(
        cell_ptr.shape[0] + 2, x.shape[1]
    ),
    "pair_sum": lambda weight, x, *_: _like(x),
    "pair_dot": lambda x, g, index, *_: x.new_empty(index.shape[1], x.shape[0]),
    "pair_attention": lambda q, k, chunk, index, *_: q.new_empty(index.shape[1], q.shape[0]),
    "pair_attention_grad": lambda g, q, k, *_: (_like(q), _like(k)),
    "sum_over_edges": lambda x, *_: _like(x),
    "gin_message": lambda x, *_: _like(x),
    "gin_message_grad": lambda g, x, table, eps, *_: tuple(map(_like, (x, table, eps))),
    "edge_attention": lambda q, k, v, edge, keep, heads, *_: (
        _like(q), q.new_empty(edge.shape[0], heads)
    ),
    "edge_attention_grad": lambda g, alpha, *of, **_: tuple(map(_like, of[:4])),
    "edge_mlp": lambda a, b, attr, attr_weight, weight, bias, activation, index, *_: a.new_empty(
        index.shape[1], weight.shape[0]
    ),
    "edge_mlp_grad": lambda g, a, b, attr, attr_weight, weight, *_: [
        _like(t) for t in (a, b, weight, attr, attr_weight) if t is not None
    ],
}  # fmt: skip
# Elsewhere torch's own are taken.
ON_CPU_ONLY = {
    name
    for part in ("linear", "edge_norm", "row_dot", "fourier_linear")
    for name in (part, f"{part}_grad")
} | {"sort_groups"}
