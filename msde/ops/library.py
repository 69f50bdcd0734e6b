"""The C++ functions of the ops: compiled at first use, called on the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msde.ops import build

SOURCE = Path(__file__).parent / "csrc/ops.cpp"
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "-falign-loops=64", "-shared", "-fPIC", "-Wl,--as-needed",
)  # fmt: skip
CAPABILITY = (7, 0)  # the least that Triton compiles for
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}

log = logging.getLogger(__name__)


def _torch_openmp() -> list[str]:
    """Return torch's own OpenMP runtime: a second one would bring threads that fight for cores."""
    folder = Path(torch.__file__).parent
    folders = (folder / "lib", folder.parent / "torch.libs")
    return [str(path) for place in folders for path in sorted(place.glob("libgomp*.so*"))]


@functools.cache
def _load() -> ctypes.CDLL | None:
    """Return the library, compiled at the first call on a machine, or None."""
    openmp = _torch_openmp()
    flags = (*FLAGS, "-fopenmp") if openmp else FLAGS  # without it there is one thread
    try:
        return ctypes.CDLL(str(build.compiled(SOURCE, flags, openmp)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning(f"training on the CPU takes nearly twice as long, without C++: {error}")
        return None


@functools.cache
def _gpu_works() -> bool:
    """Say whether a Triton kernel runs on the GPU: that Triton is installed is not enough."""
    try:
        capability = torch.cuda.get_device_capability()
        if capability < CAPABILITY:
            raise RuntimeError(f"compute capability {capability} is below {CAPABILITY}")
        kernels = importlib.import_module("msde.ops.gpu")
        index = torch.zeros(2, 1, dtype=torch.int64, device="cuda")
        row_ptr = torch.arange(2, device="cuda")
        return kernels.sum_over_edges(torch.ones(1, 1, device="cuda"), index, row_ptr).item() == 1
    except Exception as error:  # of a compiler, a driver, a library: there is no end of kinds
        log.warning(f"training on the GPU takes longer, without Triton: {error}")
        return False


def constant_when_compiled(function: Callable) -> Callable:
    """Mark a function for torch.compile: its result does not change.

    As `torch.compiler.assume_constant_result` does, which imports torch's compiler: commands that
    compile nothing would take twice as long to start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def available(device: str = "cpu") -> bool:
    """Say whether a type of device has fused ops: MSDE_OPS=reference forbids them."""
    if os.environ.get("MSDE_OPS") == "reference":
        return False
    if device == "cuda":
        return _gpu_works()
    return device == "cpu" and _load() is not None


@constant_when_compiled
@functools.cache
def own_products() -> bool:
    """Say whether matrix products by the C++ code are faster than torch's.

    torch's MKL takes AVX2 for other makers' processors: with AVX-512 it runs at half their rate,
    and without it no faster than the C++ code, which saves passes for biases and activations.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """Return the tensors with their numbers in a row; None stays None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


@functools.cache
def _function(symbol: str) -> Any:
    function = getattr(_load(), symbol)
    function.restype = None
    return function


def _c_type(argument: Tensor | float | None) -> type:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_int64


def call(
    name: str,
    *arguments: Tensor | float | None,
    dtype: torch.dtype | None = None,
    strided: bool = False,
) -> None:
    """Call `msde_<name>`, or its variant for `dtype`, on tensors and numbers.

    Args:
        dtype: of the tensors that are not int64.
        strided: the function is told the strides; else tensors must be contiguous.

    Raises:
        ValueError: a tensor is not what the function would read.
    """
    values: list[float | None] = []
    for argument in arguments:
        if not isinstance(argument, Tensor):
            values.append(argument)
            continue
        if argument.dtype not in (dtype, torch.int64):
            raise ValueError(f"{name} takes {dtype} and int64, not {argument.dtype}")
        if not (strided or argument.is_contiguous()):
            raise ValueError(f"{name} takes contiguous tensors")
        values.append(argument.data_ptr())
    function = _function(f"msde_{name}_{SUFFIXES[dtype]}" if dtype else f"msde_{name}")
    if function.argtypes is None:  # an argument's place says what it is: the same at every call
        function.argtypes = [_c_type(argument) for argument in arguments]
    function(*values)
