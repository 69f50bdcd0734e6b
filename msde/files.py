"""Files that are whole or not there, their hashes, and disks that are full."""

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
    """Turn a full disk, while `needed` bytes are written to `path`, into one clear line.

    Raises:
        DiskFull: there was no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"disk full: {path} needs {needed:,} bytes; free some and run the same command "
                "again, nothing that was finished is lost"
            ) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, sync it and move it into place.

    Args:
        durable: the file must survive a crash of the machine; else the sync is left out.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        # Some libraries create files for their owner alone; others should read these.
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
    """Make a file's bytes, or the names of a folder's files, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
