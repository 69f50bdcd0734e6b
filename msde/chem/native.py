"""The arrays of a molecule from RDKit's binary form, by a small C++ library that is built once.

The library is compiled with the machine's own compiler (`CXX`, or the first that is found) and
kept for the user. Where that cannot be, molecules are read by RDKit's getters: only slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from msde.chem.features import MIN_DISTANCE, Features
from msde.chem.vocabulary import CODES
from msde.ops.build import compiled

SOURCE = Path(__file__).parent / "featurise.cpp"
# Products that are not rounded would make positions depend on the machine.
FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
CAPACITY = 4 << 20  # bytes that a molecule's arrays may take; memory is used as it is needed
_CODES = b"".join(CODES.values())  # (12, 256) u1
_COUNTS = struct.Struct("<4i")
_F4, _U2, _U1 = np.dtype("<f4"), np.dtype("<u2"), np.dtype("u1")

log = logging.getLogger(__name__)


class _Scratch(threading.local):
    """Where the library writes, in each thread."""

    def __init__(self) -> None:
        self.buffer = np.empty(CAPACITY, "u1")
        self.address = self.buffer.ctypes.data


_scratch = _Scratch()


def features(binary: bytes) -> Features | None:
    """Return the features of a molecule in RDKit's binary form, or None: ask RDKit's getters.

    Args:
        binary: without properties; conformers in double precision, or none for positions of zero.
    """
    featurise = _library()
    if featurise is None:
        return None
    size = featurise(binary, len(binary), _CODES, MIN_DISTANCE**2, _scratch.address, CAPACITY)
    if not size:
        return None
    out = bytearray(_scratch.buffer[:size])
    n, bonds, edges, conformers = _COUNTS.unpack_from(out)
    array, at = np.ndarray, _COUNTS.size
    pos = array((conformers, n, 3), _F4, out, at)
    bond_index = array((bonds, 2), _U2, out, at := at + 12 * conformers * n)
    source = array(edges, _U2, out, at := at + 4 * bonds)
    degree = array(n, _U2, out, at := at + 2 * edges)
    z = array(n, _U1, out, at := at + 2 * n)
    x = array((n, 9), _U1, out, at := at + n)
    bond_attr = array((bonds, 3), _U1, out, at + 9 * n)
    return Features(pos, bond_index, source, degree, z, x, bond_attr)


@functools.cache
def _library() -> Callable[..., int] | None:
    """Return the library's function, compiled at the first call on a machine."""
    try:
        function = ctypes.CDLL(str(compiled(SOURCE, FLAGS))).msde_featurise
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning(f"molecules are read two times slower, without C++: {error}")
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [ctypes.c_char_p, size, ctypes.c_char_p, ctypes.c_double, pointer, size]
    function.restype = size
    return function
