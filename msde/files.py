"""Writing files atomically, hashing them, and reporting a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from msde.errors import DiskFull


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_full_as_error(path: Path, needed: int) -> Iterator[None]:
    """Turn the system's error of a full disk into one that says how much room `path` needs.

    Raises:
        DiskFull: the disk filled up inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"disk full: {path} needs {needed:,} bytes; free some space and run the same "
                "command again: finished parts are kept"
            ) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let `write` write a temporary file beside `path`, sync it and rename it.

    Args:
        durable: whether the file must survive a crash of the machine; without it there is no sync.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        # Some libraries create files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's entries, from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
