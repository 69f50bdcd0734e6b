"""Which backend runs an op on given tensors, and how ops become torch operators `msde::NAME`.

An operator has up to three launches: C++ for CPU tensors, Triton for CUDA tensors, and the C++
launch without its call for torch.compile's fake tensors.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msde.errors import MsdeError
from msde.ops import cpp

CAPABILITY = (7, 0)  # the least compute capability that Triton compiles for
BACKENDS = {"cpu": "cpp", "cuda": "triton"}

log = logging.getLogger(__name__)
Gradients = Sequence[Tensor | None]


@dataclass
class Operator:
    """The parts of a registered operator, see `register`; tests replace one launch by the other."""

    cpp: Callable[..., Any]
    # The others are None where an operator lacks the part; each is asked for before it is called.
    triton: Any = None
    gradient: Any = None
    reference: Any = None
    results: int = 1
    keep: Any = None


OPERATORS: dict[str, Operator] = {}


def register(
    name: str,
    cpp_launch: Callable[..., Any],
    triton_launch: Callable[..., Any] | None = None,
    *,
    gradient: Callable[..., Gradients] | None = None,
    reference: Callable[..., Any] | None = None,
    results: int = 1,
    keep: Callable[[tuple, Any], Sequence[Tensor | None]] | None = None,
) -> Callable[..., Any]:
    """Define the torch operator `msde::name` and return it.

    Launches get contiguous floating tensors.

    Args:
        cpp_launch: fully annotated, for the operator's schema follows from it. Its results must not
            depend on anything but shapes until `cpp.call` fills them.
        triton_launch: of the same arguments; None if GPU tensors are left to plain torch.
        gradient: of (which inputs need a gradient, gradients of the results, inputs, kept tensors);
            returns the gradients of the first inputs. None: there is no derivative.
        reference: the op in plain torch, of the same inputs, for second derivatives. None: the
            gradient is made of differentiable operators, or raises an error.
        results: how many outputs have gradients.
        keep: of (inputs, output); returns the tensors that are kept for the gradient beside the
            inputs, by default the outputs that have no gradients.
    """
    operator = OPERATORS[name] = Operator(
        cpp_launch, triton_launch, gradient, reference, results, keep
    )
    qualified = f"msde::{name}"
    torch.library.define(qualified, torch.library.infer_schema(cpp_launch, mutates_args=()))
    torch.library.impl(qualified, "CPU", lambda *inputs: operator.cpp(*contiguous(inputs)))
    if triton_launch is not None:
        torch.library.impl(qualified, "CUDA", functools.partial(_launch_on_gpu, operator))
    torch.library.register_fake(
        qualified, lambda *inputs: cpp.shapes_only(cpp_launch, *contiguous(inputs))
    )
    if gradient is not None:
        torch.library.register_autograd(
            qualified,
            functools.partial(_backward, operator),
            setup_context=functools.partial(_setup_context, operator),
        )
    return getattr(torch.ops.msde, name).default


def contiguous(inputs: Sequence[Any]) -> list[Any]:
    """Return the inputs with contiguous tensors: kernels read memory, whatever the strides."""
    return [x.contiguous() if isinstance(x, Tensor) else x for x in inputs]


def _launch_on_gpu(operator: Operator, *inputs: Any) -> Any:
    """Launch on the device of the first tensor: Triton launches on the current one."""
    first = next(x for x in inputs if isinstance(x, Tensor))
    with torch.cuda.device(first.device):
        return operator.triton(*contiguous(inputs))


def _setup_context(operator: Operator, ctx: Any, inputs: tuple, output: Any) -> None:
    """Save the inputs and the tensors that the operator keeps."""
    further = output[operator.results :] if isinstance(output, tuple) else ()
    if further:
        ctx.mark_non_differentiable(*further)
        ctx.set_materialize_grads(False)  # or zeros would be made for their gradients
    ctx.constants = [None if isinstance(x, Tensor) else x for x in inputs]
    kept = operator.keep(inputs, output) if operator.keep else further
    ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in inputs], *kept)


def _backward(operator: Operator, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing recomputes them at each access
    inputs = [s if s is not None else c for s, c in zip(saved, ctx.constants, strict=False)]
    of_results = grads[: operator.results]
    if all(g is None for g in of_results):
        found: Gradients = ()
    elif operator.reference is not None and torch.is_grad_enabled():
        found = _differentiable(operator.reference, inputs, of_results)
    else:
        kept = saved[len(inputs) :]
        found = operator.gradient(ctx.needs_input_grad, *of_results, *inputs, *kept)
    return (*found, *[None] * (len(inputs) - len(found)))


def _differentiable(
    reference: Callable[..., Any], inputs: Sequence[Any], grads: Gradients
) -> Gradients:
    """Return gradients that can be differentiated: those of plain torch, by computing it again.

    Inputs may depend on each other, as a residual and what is made of it. Views cut such paths,
    which are not the op's own.
    """
    with torch.enable_grad():
        inputs = [t.view_as(t) if isinstance(t, Tensor) else t for t in inputs]
        out = reference(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    grads = [torch.zeros_like(o) if g is None else g for o, g in zip(out, grads, strict=True)]
    needed = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    found = iter(torch.autograd.grad(out, needed, grads, create_graph=True))
    return [next(found) if isinstance(t, Tensor) and t.requires_grad else None for t in inputs]


def no_second_derivative(*_: Any) -> Gradients:
    """Refuse to differentiate a gradient.

    Raises:
        MsdeError: always.
    """
    raise MsdeError(
        "this fused op has first derivatives only; with MSDE_OPS=reference plain torch has second "
        "ones of most ops, but not of edge_mlp"
    )


def backend(*tensors: Tensor | None, under_autocast: bool = False) -> str:
    """Return the backend that takes these tensors: "cpp", "triton", or "torch" for plain torch.

    The others take float32 or float64 tensors of one dtype on one device.

    Args:
        tensors: None among them is ignored.
        under_autocast: take the tensors as they are where autocast is on, too; without it autocast
            is left to plain torch.
    """
    first, *rest = [tensor for tensor in tensors if tensor is not None]
    kind = first.device.type
    if first.dtype not in cpp.SUFFIXES:
        return "torch"
    if any([t.dtype != first.dtype or t.device != first.device for t in rest]):
        return "torch"
    if not under_autocast and torch.is_autocast_enabled(kind):
        return "torch"
    return BACKENDS[kind] if available(kind) else "torch"


@contextlib.contextmanager
def cpu_as_gpu() -> Iterator[None]:
    """Send tensors of a CPU where those of a GPU go: more is left to plain torch there."""
    of_cpu, BACKENDS["cpu"] = BACKENDS["cpu"], BACKENDS["cuda"]
    try:
        yield
    finally:
        BACKENDS["cpu"] = of_cpu


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on a CPU, as the table of backends has it."""
    return BACKENDS.get(tensor.device.type) == "cpp"


def constant_when_compiled(function: Callable) -> Callable:
    """Mark a function for torch.compile: its result does not change.

    As `torch.compiler.assume_constant_result` does, which imports torch's compiler: commands that
    compile nothing would take twice as long to start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def available(device: str = "cpu") -> bool:
    """Return whether a type of device has a backend; with MSDE_OPS=reference none has.

    Raises:
        MsdeError: MSDE_OPS has another value.
    """
    wanted = os.environ.get("MSDE_OPS", "fused")
    if wanted not in ("fused", "reference"):
        raise MsdeError(f"MSDE_OPS is {wanted!r}, expected fused or reference")
    if device not in BACKENDS or wanted == "reference":
        return False
    return _gpu_works() if device == "cuda" else cpp.load() is not None


@functools.cache
def _gpu_works() -> bool:
    """Return whether a Triton kernel runs on the GPU; an installed Triton does not prove it."""
    try:
        capability = torch.cuda.get_device_capability()
        if capability < CAPABILITY:
            raise RuntimeError(f"compute capability {capability} is below {CAPABILITY}")
        index = torch.zeros(2, 1, dtype=torch.int64, device="cuda")
        row_ptr = torch.arange(2, device="cuda")
        x = torch.ones(1, 1, device="cuda")
        return OPERATORS["sum_over_edges"].triton(x, index, row_ptr).item() == 1
    except Exception as error:  # a compiler, a driver or a library may raise errors of any type
        log.warning(f"training on the GPU takes longer, without Triton: {error}")
        return False
