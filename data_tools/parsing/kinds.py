"""What files are that are not as expected, by their first bytes."""

from __future__ import annotations

import re

HEAD = 4096  # bytes that tell the kind of a file
LMDB = (16, b"\xde\xc0\xef\xbe")  # place and bytes in the first page, where it is little-endian
_MAGIC = {
    b"\x1f\x8b": "compressed (gzip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ\0": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"PK\x03\x04": "a zip archive",
    b"SQLite format 3\0": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n": "an HDF5 file",
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"\xd0\xcf\x11\xe0": "a file of an old Office program",
    b"%PDF": "a PDF document",
}
_OFFICE = (b"[Content_Types].xml", b"docProps/", b"xl/")  # one is the first in the archive
# Pickles of protocol 2 and later, those before, and the archives of torch.save.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dlti]|[\]}]q|ccopy_reg\n|PK\x03\x04")


def is_pickle(head: bytes) -> bool:
    """Return whether first bytes are those of a pickle, or of an archive that may hold one."""
    return _PICKLE.match(head) is not None


def kind_of(head: bytes) -> str:
    """Return in words what a file is that begins so."""
    if not head.strip():
        return "empty"
    if head[LMDB[0] :].startswith(LMDB[1]):
        return "an LMDB database"
    if head.startswith(b"PK\x03\x04") and any(part in head[:HEAD] for part in _OFFICE):
        return "an Excel workbook or another Office document"
    found = next((words for magic, words in _MAGIC.items() if head.startswith(magic)), None)
    if found or is_pickle(head):
        return found or "a pickle"
    first = head[:HEAD].decode("latin-1").split("\n")[0].strip()[:30]
    return f"text, as {first!r}" if first.isprintable() and b"\0" not in head else "binary"
