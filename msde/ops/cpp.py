"""The C++ backend: a library, compiled at first use, that works on the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import logging
import subprocess
import threading
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
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
# A sum over many rows is made in this many parts, whatever the number of threads, and the parts are
# added up in order: the bits are the same for any number of threads.
PARTS = 32

log = logging.getLogger(__name__)


def _torch_openmp() -> list[str]:
    """Return torch's own OpenMP runtime: threads of a second one would compete for the cores."""
    folder = Path(torch.__file__).parent
    folders = (folder / "lib", folder.parent / "torch.libs")
    return [str(path) for place in folders for path in sorted(place.glob("libgomp*.so*"))]


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the library, compiled at the first call on a machine, or None if that fails."""
    openmp = _torch_openmp()
    flags = (*FLAGS, "-fopenmp") if openmp else FLAGS  # without OpenMP there is one thread
    try:
        return ctypes.CDLL(str(build.compiled(SOURCE, flags, openmp)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning(f"training on the CPU takes nearly twice as long, without C++: {error}")
        return None


class _Mode(threading.local):
    shapes_only = False


_mode = _Mode()
_functions: dict[str, Callable[..., None]] = {}


def shapes_only(launch: Callable[..., Any], *arguments: Any) -> Any:
    """Return the results of a launch unfilled: the C++ functions are not called.

    This is the launch on torch.compile's fake tensors, which have shapes and no memory.
    """
    _mode.shapes_only = True
    try:
        return launch(*arguments)
    finally:
        _mode.shapes_only = False


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Call the function `name` of the library on tensors and numbers; it fills its results.

    Args:
        arguments: as the function takes them. Its last one, the number of threads, is added here.
            Floating tensors choose the variant: all are float32, or all float64.

    Raises:
        ValueError: a tensor is not contiguous or of another dtype than the function reads.
    """
    if _mode.shapes_only:
        return
    values: list[float | None] = []
    dtype: torch.dtype | None = None
    for argument in arguments:
        if not isinstance(argument, Tensor):
            values.append(argument)
            continue
        if argument.dtype is not torch.int64:
            if argument.dtype not in SUFFIXES or dtype not in (None, argument.dtype):
                takes = "float32 or float64" if dtype is None else dtype
                raise ValueError(f"{name} takes {takes} and int64, not {argument.dtype}")
            dtype = argument.dtype
        if not argument.is_contiguous():
            raise ValueError(f"{name} takes contiguous tensors")
        values.append(argument.data_ptr())
    symbol = f"msde_{name}" if dtype is None else f"msde_{name}_{SUFFIXES[dtype]}"
    function = _functions.get(symbol) or _function(symbol, arguments)
    # Products of float32, rounded to bfloat16 where the processor multiplies that.
    _bfloat16().value = torch.get_float32_matmul_precision() == "medium"
    function(*values, torch.get_num_threads())


@functools.cache
def has_tiles() -> bool:
    """Return whether the library multiplies bfloat16 by the tiles of AMX."""
    return bool(ctypes.c_int.in_dll(load(), "msde_tiles").value)


@functools.cache
def _bfloat16() -> ctypes.c_int:
    """Return the library's variable that says whether products take bfloat16."""
    return ctypes.c_int.in_dll(load(), "msde_bfloat16")


def _function(symbol: str, arguments: tuple[Tensor | float | None, ...]) -> Callable[..., None]:
    """Return the function whose address the library holds under a name, for such arguments."""
    address = ctypes.c_void_p.in_dll(load(), symbol).value
    # An argument's type follows from its place: it is the same at every call.
    types = [_c_type(argument) for argument in (*arguments, 1)]
    _functions[symbol] = ctypes.CFUNCTYPE(None, *types)(address)
    return _functions[symbol]


def _c_type(argument: Tensor | float | None) -> type:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_int64
