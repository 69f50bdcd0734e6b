"""LMDB files that others wrote: opened for reading only, without lock, one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb

from msde.errors import MsdeError

RESERVED = (b"length", b"nextid", b"deleted_ids", b"metadata")  # keys that are no molecules
SPREAD = 2  # the largest number that is looked for, as a multiple of how many there are


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, value) of the records, whose keys are decimal numbers, by number.

    Raises:
        MsdeError: it is no LMDB file, or its keys are not numbers.
    """
    try:
        with closing(_open(path)) as environment, environment.begin() as transaction:
            left = environment.stat()["entries"]
            left -= sum(transaction.get(key) is not None for key in RESERVED)
            for number in range(SPREAD * left + 2):
                value = transaction.get(str(number).encode())
                if value is not None:
                    left -= 1
                    yield number, value
                if not left:
                    return
            raise MsdeError(f"{path}: {left} of its keys are not numbers that count molecules")
    except lmdb.Error as error:
        raise MsdeError(f"{path} cannot be read as LMDB: {error}") from error


def metadata(path: Path, key: bytes) -> bytes | None:
    """Return the value of one reserved key."""
    try:
        with closing(_open(path)) as environment, environment.begin() as transaction:
            return transaction.get(key)
    except lmdb.Error as error:
        raise MsdeError(f"{path} cannot be read as LMDB: {error}") from error


def first_value(path: Path) -> bytes:
    """Return the value of the first record as it stands, or nothing: there is none."""
    return next(records(path), (0, b""))[1]


def peek(path: Path) -> bytes:
    """Return the value of the first record, or nothing where the file is not of this kind."""
    try:
        return first_value(path)
    except MsdeError:
        return b""


def _open(path: Path) -> lmdb.Environment:
    if not path.is_file():
        raise MsdeError(f"{path} is not a file")
    return lmdb.open(str(path), readonly=True, lock=False, subdir=False, readahead=True)
