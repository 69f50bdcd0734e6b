"""The fused ops as torch operators `msde::*`: their gradients, and how they are registered.

torch.compile sees through them, autograd differentiates them, and the device chooses the kernel.
Linear and bilinear ops have gradients made of one another, so these can be differentiated again.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from msde.errors import MsdeError
from msde.ops import cpu, normalisation, reference
from msde.ops.schemas import FAKES, ON_CPU_ONLY, SCHEMAS


def _keep(ctx: Any, inputs: tuple, output: Any, results: int = 1) -> None:
    """Save the inputs, and what of the output, behind its results, the gradient needs."""
    ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    further = output[results:] if isinstance(output, tuple) else ()
    if further:
        ctx.mark_non_differentiable(*further)
        ctx.set_materialize_grads(False)  # or zeros would be made for the gradients of these
    ctx.save_for_backward(*tensors, *further)


def _kept(ctx: Any) -> list[Any]:
    """Return the inputs as they were, and behind them what was saved of the output."""
    saved = ctx.saved_tensors  # once: activation checkpointing makes them anew
    inputs = [s if s is not None else c for s, c in zip(saved, ctx.constants, strict=False)]
    return [*inputs, *saved[len(inputs) :]]


def _rest(inputs: Sequence[Any], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Append None for the inputs after the first ones, which have no gradients."""
    return (*grads, *[None] * (len(inputs) - len(grads)))


def _again(
    function: Callable[..., Any], inputs: Sequence[Any], g: Tensor | tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated: those of plain torch, by computing it again."""
    with torch.enable_grad():
        out = function(*inputs)
    needed = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    found = iter(torch.autograd.grad(out, needed, g, create_graph=True))
    return tuple(next(found) if isinstance(t, Tensor) and t.requires_grad else None for t in inputs)


def _keep_linear(ctx: Any, inputs: tuple, output: Any) -> None:
    """Save the inputs and what the activation's derivative is computed from."""
    (y, before), activation = output, inputs[3]
    ctx.mark_non_differentiable(before)
    ctx.set_materialize_grads(False)
    h = before if activation == "silu" else None if activation is None else y
    ctx.activation = activation
    ctx.save_for_backward(*inputs[:3], h)


def _linear(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, weight, bias, h = ctx.saved_tensors
    inputs = (x, weight, bias, ctx.activation)
    if g is None:
        return (*_rest(inputs), None)
    need_x, need_weight, need_bias, _, need_plus = ctx.needs_input_grad
    of_plus = g if need_plus else None
    if torch.is_grad_enabled():
        return (*_again(reference.linear, inputs, g), of_plus)
    gx, g_weight, g_bias = ops.linear_grad(g, h, x, weight, ctx.activation, need_x)
    needed = zip((gx, g_weight, g_bias), (need_x, need_weight, need_bias), strict=True)
    return (*_rest(inputs, *[grad if need else None for grad, need in needed]), of_plus)


def _batch_norm(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *inputs, mean, variance = _kept(ctx)
    if g is None:
        return _rest(inputs)
    if torch.is_grad_enabled():
        return _again(normalisation.normalised_over_rows, inputs, g)
    return _rest(inputs, *ops.batch_norm_grad(g, *inputs, mean, variance))


def _normed_over_edges(*inputs: Any) -> tuple[Tensor, ...]:
    return normalisation.normalised_over_edges(*inputs)[:2]


def _edge_norm(
    ctx: Any, of_a: Tensor | None, of_b: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    *inputs, means, variance = _kept(ctx)
    a, b, weight, _, *rest = inputs
    g = tuple(torch.zeros_like(a) if of is None else of for of in (of_a, of_b))
    if torch.is_grad_enabled():
        return _again(_normed_over_edges, inputs, g)
    return _rest(inputs, *ops.edge_norm_grad(*g, a, b, weight, *rest, means, variance))


def _row_dot(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    if torch.is_grad_enabled():
        return _again(reference.row_dot, inputs, g)
    return _rest(inputs, *ops.row_dot_grad(g, *inputs))


def _fourier_linear(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    if torch.is_grad_enabled():
        return _again(reference.fourier_linear, inputs, g)
    v, frequency, *_ = inputs
    return (None, None, *ops.fourier_linear_grad(g, v, frequency))


def _frame_mean(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    _, *rest = inputs = _kept(ctx)
    return _rest(inputs, ops.frame_mean_grad(g, *rest))


def _frame_mean_grad(ctx: Any, of_b: Tensor) -> tuple[Tensor | None, ...]:
    _, *rest = inputs = _kept(ctx)
    return _rest(inputs, ops.frame_mean(of_b, *rest))


def _interpolated_conv(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    x, table, *where = inputs
    need_x, need_table = ctx.needs_input_grad[:2]
    # Symmetric filters: the convolution is its own transpose.
    gx = ops.interpolated_conv(g, table, *where) if need_x else None
    return _rest(inputs, gx, ops.interpolated_table_grad(x, g, *where) if need_table else None)


def _interpolated_table_grad(ctx: Any, of_table: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    x, g, *where = inputs
    convolved = [ops.interpolated_conv(rows, of_table, *where) for rows in (g, x)]
    return _rest(inputs, *convolved)


def _pair_sum(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    weight, x, *pairs = inputs
    need_weight, need_x = ctx.needs_input_grad[:2]
    g_weight = ops.pair_dot(x, g, *pairs) if need_weight else None
    return _rest(inputs, g_weight, ops.pair_sum(weight, g, *pairs) if need_x else None)


def _pair_dot(ctx: Any, of_weight: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    x, g, *pairs = inputs
    return _rest(inputs, *[ops.pair_sum(of_weight, rows, *pairs) for rows in (g, x)])


def _pair_attention(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    return _rest(inputs, *ops.pair_attention_grad(g, *inputs))


def _sum_over_edges(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    # Each edge stands beside its reverse: the sum is its own transpose.
    return _rest(inputs, ops.sum_over_edges(g, *inputs[1:]))


def _gin_message(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    return _rest(inputs, *ops.gin_message_grad(g, *inputs))


def _edge_attention(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, alpha = _kept(ctx)
    if g is None:
        return _rest(inputs)
    return _rest(inputs, *ops.edge_attention_grad(g, alpha, *inputs))


def _edge_mlp(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _kept(ctx)
    without_bias = [*inputs[:5], *inputs[6:]]
    ga, gb, g_weight, *of_attr = ops.edge_mlp_grad(g, *without_bias)
    return _rest(inputs, ga, gb, *(of_attr or (None, None)), g_weight, g.sum(0))


def _once(ctx: Any, *grads: Tensor) -> None:
    raise MsdeError("this op has first derivatives only; MSDE_OPS=reference may have second ones")


GRADIENTS: dict[str, Callable[..., tuple[Tensor | None, ...]]] = {
    "linear": _linear,
    "batch_norm": _batch_norm,
    "edge_norm": _edge_norm,
    "row_dot": _row_dot,
    "fourier_linear": _fourier_linear,
    "frame_mean": _frame_mean,
    "frame_mean_grad": _frame_mean_grad,
    "interpolated_conv": _interpolated_conv,
    "interpolated_table_grad": _interpolated_table_grad,
    "pair_sum": _pair_sum,
    "pair_dot": _pair_dot,
    "pair_attention": _pair_attention,
    "sum_over_edges": _sum_over_edges,
    "gin_message": _gin_message,
    "edge_attention": _edge_attention,
    "edge_mlp": _edge_mlp,
}


# What is saved for the gradients, where it is not all inputs.
CONTEXTS = {"linear": _keep_linear, "edge_norm": functools.partial(_keep, results=2)}
# Used where nobody asks for them.
WITHOUT_GRADIENTS = {"sort_groups", "words", "normals", "edge_geometry"}


def _by(module: str, name: str) -> Callable[..., Any]:
    """Return the function of a module, looked up when it is called: Triton may be missing."""

    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"msde.ops.{module}"), name)(*arguments)

    return run


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Make the first tensor's device the current one: that is where Triton launches."""

    def run(*arguments: Any) -> Any:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device(first.device):
            return launch(*arguments)

    return run


def _register() -> None:
    for name, schema in SCHEMAS.items():
        operator = f"msde::{name}"
        torch.library.define(operator, schema)
        torch.library.impl(operator, "CPU", _by("cpu", name))
        if name not in ON_CPU_ONLY:
            torch.library.impl(operator, "CUDA", _on_its_device(_by("gpu", name)))
        torch.library.register_fake(operator, FAKES[name])
        if name not in WITHOUT_GRADIENTS:
            gradient, keep = GRADIENTS.get(name, _once), CONTEXTS.get(name, _keep)
            torch.library.register_autograd(operator, gradient, setup_context=keep)


def _short_cut(name: str) -> Callable[..., Any]:
    """Return the operator with a way to the C++ code that passes by torch's dispatcher.

    The dispatcher takes longer than the work on small tensors. It is needed on GPUs and where
    something has to see the operators: torch.compile, torch.func, counters of FLOPs.
    """
    operator, keep = getattr(torch.ops.msde, name), CONTEXTS.get(name, _keep)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = getattr(cpu, name)(*inputs)
        keep(ctx, inputs, output)
        return output

    backward = GRADIENTS.get(name, _once)
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*inputs: Any) -> Any:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not tensors[0].is_cpu or _is_watched():
            return operator(*inputs)
        differentiable = name not in WITHOUT_GRADIENTS and torch.is_grad_enabled()
        if differentiable and any([tensor.requires_grad for tensor in tensors]):
            return function.apply(*inputs)
        return getattr(cpu, name)(*inputs)

    return call


def _is_watched() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


_register()
ops = SimpleNamespace(**{name: _short_cut(name) for name in SCHEMAS})
