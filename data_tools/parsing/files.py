"""Files of readers: their names, archives, encodings, and optional packages."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import functools
import gzip
import importlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO, TextIO

from msde.errors import MsdeError

from ..names import ARCHIVES, source_name
from . import kinds

CHUNK = 1 << 20  # bytes that are decoded at a time
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UTF_8 = "utf-8-sig"  # with or without a byte order mark
WINDOWS = "cp1252"  # of text that is not Unicode, unless the user names another encoding


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a file's name, in lower case and not compressed, ends in a suffix."""
    return source_name(path).lower().endswith(suffixes)


def is_archive(path: Path) -> bool:
    """Return whether a file is named like a tar archive."""
    return path.name.lower().endswith(ARCHIVES)


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the stream of each file in a tar archive, one after the other."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None and not Path(member.name).name.startswith("."):
                yield member.name, stream


class _Forward(io.RawIOBase):
    """A file in an archive that is streamed: it cannot be asked whether it goes back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file of bytes, decompressed if it is named so; of an archive its only file.

    Raises:
        MsdeError: the archive holds no file, or more than one.
    """
    if not is_archive(path):
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
        return
    with contextlib.closing(members(path)) as inside:
        first = next(inside, None)
        if first is None:
            raise MsdeError(f"archive {path} holds no file")
        yield io.BufferedReader(_Forward(first[1]))  # type: ignore[arg-type]
        second = next(inside, None)
        if second is not None:
            raise MsdeError(
                f"archive {path} holds several files, as {first[0]} and {second[0]}; unpack it "
                "and give the folder"
            )


@contextlib.contextmanager
def open_text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """Open a text file, see `open_bytes`; line ends of all kinds become one.

    Args:
        encoding: None: see `encoding_of`.
    """
    encoding = encoding or encoding_of(path)
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding) as text:
        yield text


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file: that of its byte order mark, UTF-8, or Windows-1252.

    Raises:
        MsdeError: it is none of them, or the file is binary.
    """
    return _encoding(path, path.stat().st_mtime_ns)


@functools.lru_cache
def _encoding(path: Path, changed: int) -> str:
    with open_bytes(path) as file:
        head = chunk = file.read(CHUNK)
        wide = _wide_encoding(chunk)
        if wide and "\0" not in chunk.decode(wide, "ignore"):
            return wide
        decoders = {name: codecs.getincrementaldecoder(name)() for name in (UTF_8, WINDOWS)}
        while decoders:
            if b"\0" in chunk:
                raise MsdeError(
                    f"{path} is {kinds.kind_of(head)}, expected text; export it as text, or if it "
                    "is, name its encoding, as --encoding utf-32"
                )
            for name, decoder in list(decoders.items()):
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError:
                    del decoders[name]
            if not chunk and decoders:
                return next(iter(decoders))
            chunk = file.read(CHUNK)
    raise MsdeError(
        f"{path} is neither UTF-8 nor Windows-1252 text; name its encoding, as --encoding gb18030"
    )


def _wide_encoding(chunk: bytes) -> str | None:
    """Return the encoding of text of two bytes a letter, or None."""
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    halves = ((1, "utf-16-le"), (0, "utf-16-be"))
    return next((name for i, name in halves if chunk[i::2].count(0) > len(chunk) // 4), None)


@contextlib.contextmanager
def unreadable_as_error(path: Path) -> Iterator[None]:
    """Turn the errors of files that are missing, cut off or damaged into one line.

    Raises:
        MsdeError: the file cannot be read.
    """
    try:
        yield
    except UnicodeError as error:
        raise MsdeError(
            f"input {path} is not the text that was expected ({error.reason}); is it binary? "
            "Otherwise name its encoding, as --encoding latin-1"
            if isinstance(error, UnicodeDecodeError)
            else f"input {path} cannot be decoded: {error}"
        ) from error
    except LookupError as error:
        raise MsdeError(f"input {path}: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, csv.Error) as error:
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
