"""C++ libraries, compiled once for a machine and kept for the user.

The machine's own compiler makes them: `CXX`, or the first that is found.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msde.files import user_cache

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")


def compiled(source: Path, flags: Sequence[str], libraries: Sequence[str] = ()) -> Path:
    """Return the path of the library for this source, compiler and machine.

    Args:
        source: a C++ file; the headers beside it belong to it.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it takes too long.
        RuntimeError: it fails, or the user has no home folder nor XDG_CACHE_HOME.
    """
    command = compiler()
    texts = [source.read_bytes(), *(p.read_bytes() for p in sorted(source.parent.glob("*.hpp")))]
    words = [*command, *flags, *libraries, platform.machine()]
    if "-march=native" in flags:
        words.append(_instructions())
    key = hashlib.sha256(b"\0".join([*texts, *map(str.encode, words)])).hexdigest()[:16]
    cache = user_cache()
    path = cache / f"{source.stem}-{key}.so"
    if not path.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(cache / ".lock"):
            if not path.exists():
                log.warning(
                    "compiling %s for this machine with %s, once, which takes about half a minute; "
                    "the result is kept in %s", source.name, command[0], cache,
                )  # fmt: skip
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
            pass  # another machine with this home made it: a library in use must not be replaced
        except OSError:  # a file system without links
            os.replace(made, path)


def _instructions() -> str:
    """Return the processor's kind and flags: machines of several kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def compiler() -> list[str]:
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
