"""Integrity of shards: sizes, checksums, and the damaged blocks of a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from msde.data import codec
from msde.errors import DataDamaged
from msde.files import file_sha256

PAGE = 4096  # bytes of a page of LMDB
_PAGE_HEADER = struct.Struct("<QHHI")  # its number, padding, flags, pages that follow it
_LARGE_VALUE = 4  # the flag of pages that hold one value, P_OVERFLOW in mdb.c


def check_shard(path: Path, shard: dict[str, Any]) -> None:
    """Check a shard's size and, the first time on this machine, its SHA-256.

    A note in the temporary folder spares other processes the check until the file changes.

    Raises:
        DataDamaged: the file has changed since it was written; damaged blocks are named.
    """
    check_size(path, shard["bytes"])
    facts = path.stat()
    identity = (path.resolve(), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    note = hashlib.sha256(repr((*identity, facts.st_ctime_ns, shard["sha256"])).encode())
    with _note_of_the_machine(note.hexdigest()) as checked:
        if not checked.read() and file_sha256(path) != shard["sha256"]:
            where = ", ".join(f"block {b}: {why}" for b, why in damaged_blocks(path))
            raise DataDamaged(
                f"{path} is damaged (SHA-256 differs; {where or 'outside its blocks'}); "
                "copy or convert it again"
            )
        with contextlib.suppress(OSError):  # a full disk: the next process checks again
            checked.write(b"checked")


def _note_of_the_machine(name: str) -> BinaryIO:
    """Open and lock a note of this machine and user; without a buffer, so that closing is safe."""
    try:
        folder = Path(tempfile.gettempdir()) / f"msde-checked-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise OSError("the folder belongs to another user")
        file = open(folder / name, "a+b", buffering=0)
    except OSError:  # there can be no note: every process checks for itself
        return io.BytesIO()
    with contextlib.suppress(OSError):  # without locks, several processes may check at once
        fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    return file


def damaged_blocks(path: Path) -> list[tuple[int, str]]:
    """Return the damaged blocks of a shard, with reasons, without reading it as LMDB.

    LMDB stores a large value in consecutive pages behind a header of 16 bytes, in the order of
    writing. A block begins where that header or the first bytes of the block are found, so one of
    the two may be damaged. Blocks below half a page are not found.
    """
    found = []
    data = path.read_bytes()
    at, block = 0, 0
    while at < len(data):
        begin = at + _PAGE_HEADER.size
        length = codec.block_length(data[begin : begin + 64])
        pages = _pages_of_value(data[at:begin], at // PAGE)
        if length is None and pages is None:
            at += PAGE
            continue
        try:
            codec.decode(data[begin : begin + (length or 0)])
            pages = -(-(_PAGE_HEADER.size + (length or 0)) // PAGE)
        except codec.BlockError as error:
            found.append((block, str(error)))
        block += 1
        at += PAGE * (pages or 1)
    return found


def _pages_of_value(header: bytes, page: int) -> int | None:
    """Return the number of pages of the large value that begins here, or None: none does."""
    if len(header) < _PAGE_HEADER.size:
        return None
    number, _, flags, pages = _PAGE_HEADER.unpack(header)
    return pages if (number, flags) == (page, _LARGE_VALUE) and pages else None


def list_problems(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each list of molecules that is not as the manifest says."""
    for name, sha256 in manifest.get("lists", {}).items():
        if not (root / name).exists():
            yield f"{root / name} has no file"
        elif file_sha256(root / name) != sha256:
            yield f"{root / name} is damaged (SHA-256 differs, expected {sha256[:16]}...)"


def check_size(path: Path, expected: int) -> None:
    """Check that a file exists and has its size: mapping a shorter one ends in SIGBUS.

    Raises:
        DataDamaged: the file is missing or has another size.
    """
    size = path.stat().st_size if path.exists() else None
    if size != expected:
        raise DataDamaged(
            f"{path} has {'no file' if size is None else f'{size} bytes'}, the manifest says "
            f"{expected} bytes; copy or convert it again"
        )
