"""Files of readers: their names, how they are opened, and optional packages."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, TextIO

from msde.errors import MsdeError


def source_name(path: Path) -> str:
    """Return the name that identifies a file's molecules, the same with and without .gz."""
    return path.name.removesuffix(".gz")


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a file's name, without .gz and in lower case, ends in one of `suffixes`."""
    return source_name(path).lower().endswith(suffixes)


def open_text(path: Path) -> TextIO:
    """Open a text file, compressed with gzip if it is named .gz; a byte order mark is skipped."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return open(path, encoding="utf-8-sig", errors="replace")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file of bytes, compressed with gzip if it is named .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


@contextlib.contextmanager
def unreadable_as_error(path: Path) -> Iterator[None]:
    """Turn the errors of files that are missing, cut off or damaged into one line.

    Raises:
        MsdeError: the file cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise MsdeError(f"input {path} cannot be read: {error}") from error


def import_optional(package: str) -> ModuleType:
    """Import a package that only some formats need.

    Raises:
        MsdeError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MsdeError(
            f"this format needs the package {package.partition('.')[0]}; "
            "install it with pip install 'msde[formats]'"
        ) from error
