"""LMDB files of other projects: opened for reading only, without lock, one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

RESERVED = (b"length", b"nextid", b"deleted_ids", b"metadata")  # keys that are no molecules
SPREAD = 2  # the largest number that is looked for, as a multiple of how many there are


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, value) of the records, whose keys are decimal numbers, by number.

    Raises:
        MsdeError: it is no LMDB file, or its keys are not numbers.
    """
    with _open(path) as (environment, transaction):
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


def metadata(path: Path, key: bytes) -> bytes | None:
    """Return the value of one reserved key."""
    with _open(path) as (_, transaction):
        return transaction.get(key)


def first_record(path: Path, decode: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """Return the first record, decoded; {} where there is none.

    Raises:
        MsdeError: it cannot be decoded.
    """
    for _, value in records(path):
        try:
            return decode(value)
        except MoleculeError as error:
            raise MsdeError(f"{path}: its first record {error}") from error
    return {}


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
    try:
        with closing(lmdb.open(str(path), readonly=True, lock=False, subdir=False)) as environment:
            with environment.begin() as transaction:
                yield environment, transaction
    except lmdb.Error as error:
        raise MsdeError(f"{path} cannot be read as LMDB: {error}") from error
