"""LMDB files of other projects: opened for reading only, without lock, one file."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from . import kinds

RESERVED = (b"length", b"nextid", b"deleted_ids", b"metadata")  # keys that are no molecules
SMALLEST = 10  # bytes that a record takes at least
PROBE = """
import lmdb, sys
with lmdb.open(sys.argv[1], readonly=True, lock=False, subdir=False) as environment:
    with environment.begin(buffers=True) as transaction:
        number = 0
        for number, (key, value) in enumerate(transaction.cursor(), start=1):
            bytes(key), bytes(value[:1]), bytes(value[-1:])
            if number > int(sys.argv[2]):
                break
        if number != environment.stat()["entries"]:
            sys.exit("its records are not as many as it says")
"""
SPREAD = 2  # the largest number that is looked for, as a multiple of how many there are


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, value) of the records, whose keys are decimal numbers, by number.

    Raises:
        MsdeError: it is no LMDB file, or its keys are not numbers.
    """
    with _open(path) as (environment, transaction):
        left = environment.stat()["entries"] - _reserved(transaction)
        for number in range(SPREAD * left + 2):
            value = transaction.get(str(number).encode())
            if value is not None:
                left -= 1
                yield number, value
            if not left:
                return
        raise MsdeError(f"{path}: {left} of its keys are not numbers that count molecules")


def count_records(path: Path) -> int:
    """Return how many molecules there are."""
    with _open(path) as (environment, transaction):
        return environment.stat()["entries"] - _reserved(transaction)


def _reserved(transaction: lmdb.Transaction) -> int:
    return sum(transaction.get(key) is not None for key in RESERVED)


def metadata(path: Path, key: bytes) -> bytes | None:
    """Return the value of one reserved key."""
    with _open(path) as (_, transaction):
        return transaction.get(key)


def first_records(
    path: Path, decode: Callable[[bytes], dict[str, Any]], count: int
) -> list[dict[str, Any]]:
    """Return those of the first records that can be decoded.

    Raises:
        MsdeError: there are records and none can be decoded.
    """
    found, reason = [], None
    for _, value in itertools.islice(records(path), count):
        try:
            found.append(decode(value))
        except MoleculeError as error:
            reason = reason or error
    if reason and not found:
        raise MsdeError(f"{path}: its first record {reason}") from reason
    return found


def peek(path: Path) -> bytes:
    """Return the value of the first record, or nothing where the file is not of this kind."""
    try:
        return next(records(path), (0, b""))[1]
    except MsdeError:
        return b""


@contextmanager
def _open(path: Path) -> Iterator[tuple[lmdb.Environment, lmdb.Transaction]]:
    if not path.is_file():
        raise MsdeError(f"{path} is not a file")
    with open(path, "rb") as file:
        head = file.read(kinds.HEAD)
    if kinds.kind_of(head) != "an LMDB database":
        raise MsdeError(f"{path} cannot be read as LMDB: it is {kinds.kind_of(head)}")
    stat = path.stat()
    _check_pages(path, stat.st_size, stat.st_mtime_ns)
    try:
        with closing(lmdb.open(str(path), readonly=True, lock=False, subdir=False)) as environment:
            with environment.begin() as transaction:
                yield environment, transaction
    except lmdb.Error as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise MsdeError(f"{path} cannot be read as LMDB: {reason}") from error


@functools.cache
def _check_pages(path: Path, size: int, mtime: int) -> None:
    """Read every record once in another process, which a damaged file ends.

    LMDB trusts its pages: it follows damaged ones out of the file, and that is the end of the
    process.

    Raises:
        MsdeError: the file is cut off or damaged.
    """
    command = [sys.executable, "-c", PROBE, str(path), str(size // SMALLEST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() if done.returncode > 0 else ()
        reason = lines[-1].rpartition(": ")[2] if lines else "its pages lead out of the file"
        raise MsdeError(f"{path} cannot be read as LMDB, it is cut off or damaged: {reason}")
