"""The arrays of a molecule from RDKit's binary form, by a small C++ library that is built once.

The library is compiled with the machine's own compiler (`CXX`, or the first that is found) and
kept for the user. Where that cannot be, molecules are read by RDKit's getters: only slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from msde.features import CODES, MIN_DISTANCE, Features

SOURCE = Path(__file__).parent / "csrc/featurise.cpp"
COMPILERS = ("c++", "g++", "clang++")
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


def compiled(source: Path, flags: Sequence[str], libraries: Sequence[str] = ()) -> Path:
    """Return the path of the library for this source, compiler and machine.

    Args:
        source: a C++ file; the headers beside it belong to it.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it takes too long.
        RuntimeError: it fails, or the user has no home folder nor XDG_CACHE_HOME.
    """
    command = _compiler()
    texts = [source.read_bytes(), *(p.read_bytes() for p in sorted(source.parent.glob("*.hpp")))]
    words = [*command, *flags, *libraries, platform.machine()]
    if "-march=native" in flags:
        words.append(_instructions())
    key = hashlib.sha256(b"\0".join([*texts, *map(str.encode, words)])).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msde"
    path = cache / f"{source.stem}-{key}.so"
    if not path.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(cache / ".lock"):
            if not path.exists():
                _compile([*command, *flags], source, libraries, path)
    return path


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let the ranks of a machine wait for the first of them instead of all compiling."""
    with lock.open("w") as file:
        with contextlib.suppress(OSError):  # no locks here: each compiles its own, which will do
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], source: Path, libraries: Sequence[str], path: Path) -> None:
    """Compile a library beside its path, and give it that name when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        line = [*command, "-o", str(made), str(source), *libraries]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=300)
        if done.returncode:
            said = done.stderr.strip()[-500:] or f"status {done.returncode}"
            raise RuntimeError(f"{command[0]} fails: {said}")
        try:
            os.link(made, path)
        except FileExistsError:
            pass  # of another machine with this home: what is in use must not be replaced
        except OSError:  # a file system without links
            os.replace(made, path)


def _instructions() -> str:
    """Return what tells this machine's instructions from another's with the same home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _compiler() -> list[str]:
    """Return the command that compiles C++, with its path.

    Raises:
        FileNotFoundError: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in chosen[:1] or COMPILERS:
        path = shutil.which(name)
        if path:
            return [path, *chosen[1:]]
    raise FileNotFoundError(f"no C++ compiler ({' '.join(chosen) or ', '.join(COMPILERS)}) found")
