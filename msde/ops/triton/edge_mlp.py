"""The edge MLP's kernels for GPUs, in Triton: see `csrc/edge_mlp.hpp`."""

from __future__ import annotations

import triton
import triton.language as tl

from msde.ops.triton.device import apply_relu, relu_grad, sigmoid


@triton.jit
def _load(pointer, rows, columns, stride, there, count):
    """A block (rows, columns) of a matrix with `count` columns; zero where nothing is."""
    mask = there[:, None] & (columns < count)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0)


@triton.jit
def _hidden(a, b, attr, attr_weight, source, target, e, there, f, width, inputs,
            block_inputs: tl.constexpr, has_attr: tl.constexpr):  # fmt: skip
    """Columns f of the hidden layer of the edges e, before the activation."""
    s = tl.load(source + e, mask=there, other=0)
    t = tl.load(target + e, mask=there, other=0)
    hidden = _load(a, s, f, width, there, width) + _load(b, t, f, width, there, width)
    if has_attr:
        k = tl.arange(0, block_inputs)
        rows = _load(attr, e, k, inputs, there, inputs)
        weights = _load(attr_weight, f, k, inputs, f < width, inputs)
        hidden += tl.dot(rows, tl.trans(weights), input_precision="ieee")
    return hidden


@triton.jit
def _activate(x, silu: tl.constexpr):
    if silu:
        return x * sigmoid(x)
    else:
        return apply_relu(x)


@triton.jit
def _activate_grad(g, x, silu: tl.constexpr):
    """The gradient of x from that of _activate(x)."""
    if silu:
        s = sigmoid(x)
        return g * s * (1 + x * (1 - s))
    else:
        return relu_grad(g, x)


@triton.jit
def edge_mlp(a, b, attr, attr_weight, weight, bias, source, target, out, edges, width, inputs,
             outputs, silu: tl.constexpr, has_attr: tl.constexpr, tile: tl.constexpr,
             block: tl.constexpr, block_inputs: tl.constexpr,
             block_outputs: tl.constexpr):  # fmt: skip
    """A tile of edges: the product with the weights, block by block of the hidden layer."""
    e = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    o = tl.arange(0, block_outputs)
    there = e < edges
    total = tl.zeros([tile, block_outputs], out.dtype.element_ty)
    for start in range(0, width, block):
        f = start + tl.arange(0, block)
        hidden = _hidden(a, b, attr, attr_weight, source, target, e, there, f, width, inputs,
                         block_inputs, has_attr)  # fmt: skip
        weights = _load(weight, o, f, width, o < outputs, width)
        total += tl.dot(_activate(hidden, silu), tl.trans(weights), input_precision="ieee")
    total += tl.load(bias + o, mask=o < outputs, other=0)[None, :]
    mask = there[:, None] & (o < outputs)[None, :]
    tl.store(out + e[:, None] * outputs + o[None, :], total, mask=mask)


@triton.jit
def edge_mlp_atom_grad(g, a, b, attr, attr_weight, weight, source, target, row_ptr, edge_of,
                       out, width, inputs, outputs, silu: tl.constexpr, has_attr: tl.constexpr,
                       tile: tl.constexpr, block: tl.constexpr, block_inputs: tl.constexpr,
                       block_outputs: tl.constexpr):  # fmt: skip
    """A block of the hidden layer of one atom: its gradient over the edges edge_of[row]."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    o = tl.arange(0, block_outputs)
    weights = _load(weight, o, f, width, o < outputs, width)
    total = tl.zeros([block], out.dtype.element_ty)
    last = tl.load(row_ptr + i + 1)
    for start in range(tl.load(row_ptr + i), last, tile):
        at = start + tl.arange(0, tile)
        e = tl.load(edge_of + at, mask=at < last, other=0)
        hidden = _hidden(a, b, attr, attr_weight, source, target, e, at < last, f, width, inputs,
                         block_inputs, has_attr)  # fmt: skip
        upper = _load(g, e, o, outputs, at < last, outputs)
        grad = tl.dot(upper, weights, input_precision="ieee")
        grad = _activate_grad(grad, hidden, silu)
        total += tl.sum(grad, axis=0)
    tl.store(out + i * width + f, total, mask=f < width)


@triton.jit
def edge_mlp_attr_grad(g, a, b, attr, attr_weight, weight, source, target, out, edges, width,
                       inputs, outputs, silu: tl.constexpr, tile: tl.constexpr,
                       block: tl.constexpr, block_inputs: tl.constexpr,
                       block_outputs: tl.constexpr):  # fmt: skip
    """A tile of edges: the gradient of their features."""
    e = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    k = tl.arange(0, block_inputs)
    o = tl.arange(0, block_outputs)
    there = e < edges
    upper = _load(g, e, o, outputs, there, outputs)
    total = tl.zeros([tile, block_inputs], out.dtype.element_ty)
    for start in range(0, width, block):
        f = start + tl.arange(0, block)
        hidden = _hidden(a, b, attr, attr_weight, source, target, e, there, f, width, inputs,
                         block_inputs, True)  # fmt: skip
        weights = _load(weight, o, f, width, o < outputs, width)
        grad = tl.dot(upper, weights, input_precision="ieee")
        grad = _activate_grad(grad, hidden, silu)
        back = _load(attr_weight, f, k, inputs, f < width, inputs)
        total += tl.dot(grad, back, input_precision="ieee")
    mask = there[:, None] & (k < inputs)[None, :]
    tl.store(out + e[:, None] * inputs + k[None, :], total, mask=mask)


@triton.jit
def edge_mlp_weight_grad(g, a, b, attr, attr_weight, weight, source, target, parts, attr_parts,
                         edges, per_part, width, inputs, outputs, silu: tl.constexpr,
                         has_attr: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
                         block_inputs: tl.constexpr, block_outputs: tl.constexpr):  # fmt: skip
    """A block of the hidden layer and a part of the edges: the gradients of both weights."""
    part = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * block + tl.arange(0, block)
    o = tl.arange(0, block_outputs)
    k = tl.arange(0, block_inputs)
    weights = _load(weight, o, f, width, o < outputs, width)
    total = tl.zeros([block_outputs, block], parts.dtype.element_ty)
    of_attr = tl.zeros([block, block_inputs], parts.dtype.element_ty)
    last = tl.minimum(edges, (part + 1) * per_part)
    for start in range(part * per_part, last, tile):
        e = start + tl.arange(0, tile)
        there = e < last
        hidden = _hidden(a, b, attr, attr_weight, source, target, e, there, f, width, inputs,
                         block_inputs, has_attr)  # fmt: skip
        upper = _load(g, e, o, outputs, there, outputs)
        total += tl.dot(tl.trans(upper), _activate(hidden, silu), input_precision="ieee")
        if has_attr:
            grad = tl.dot(upper, weights, input_precision="ieee")
            grad = _activate_grad(grad, hidden, silu)
            rows = _load(attr, e, k, inputs, there, inputs)
            of_attr += tl.dot(tl.trans(grad), rows, input_precision="ieee")
    at = (part * outputs + o)[:, None] * width + f[None, :]
    tl.store(parts + at, total, mask=(o < outputs)[:, None] & (f < width)[None, :])
    if has_attr:
        at = (part * width + f)[:, None] * inputs + k[None, :]
        tl.store(attr_parts + at, of_attr, mask=(f < width)[:, None] & (k < inputs)[None, :])
