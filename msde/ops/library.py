"""The C++ functions of the ops: compiled at first use, called on the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from msde import native

SOURCE = Path(native.__file__).parent / "csrc/ops/ops.cpp"
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC",
    "-Wl,--as-needed",
)  # fmt: skip
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
    try:
        return ctypes.CDLL(str(native.compiled(SOURCE, FLAGS, _torch_openmp())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning(f"training on the CPU takes nearly twice as long, without C++: {error}")
        return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def available(device: str = "cpu") -> bool:
    """Say whether a type of device has fused ops: MSDE_OPS=reference forbids them."""
    if os.environ.get("MSDE_OPS") == "reference":
        return False
    if device == "cuda":
        return _has_triton()
    return device == "cpu" and _load() is not None


@torch.compiler.assume_constant_result
@functools.cache
def own_products() -> bool:
    """Say whether matrix products by the C++ code are faster than torch's.

    torch's MKL takes AVX2 for other makers' processors: with AVX-512 it runs at half their rate.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def _function(name: str, types: tuple[type, ...]) -> Callable[..., None]:
    function = getattr(_load(), name)
    function.argtypes = types
    function.restype = None
    return function


def call(name: str, *arguments: Tensor | int | None, dtype: torch.dtype | None = None) -> None:
    """Call `msde_<name>`, or its variant for `dtype`, on contiguous tensors and numbers."""
    types: list[type] = []
    values: list[int | None] = []
    for argument in arguments:
        number = isinstance(argument, int)
        types.append(ctypes.c_int64 if number else ctypes.c_void_p)
        values.append(argument.data_ptr() if isinstance(argument, Tensor) else argument)
    symbol = f"msde_{name}_{SUFFIXES[dtype]}" if dtype else f"msde_{name}"
    _function(symbol, tuple(types))(*values)
