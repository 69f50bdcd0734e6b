"""The names of files of molecules."""

from __future__ import annotations

from pathlib import Path

from msde.errors import MsdeError

LMDB_FILE = "data.mdb"  # of an LMDB data set that is a folder
COMPRESSED = (".gz", ".bz2", ".xz")
NOT_STREAMED = (".db", ".npz", ".npy", ".lmdb", ".aselmdb", ".mdb", ".pt", ".pth")
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


def source_name(path: Path) -> str:
    """Return the name that identifies a file's molecules, the same if it is compressed.

    An archive that is named after the one file inside has that file's name, and LMDB's file the
    name of its folder.
    """
    if path.name == LMDB_FILE:
        return path.resolve().parent.name
    ending = next((end for end in ARCHIVES[1:] if path.name.lower().endswith(end)), None)
    if ending is None:
        return path.stem if path.suffix.lower() in COMPRESSED else path.name
    stem = path.name[: -len(ending)]
    return stem if "." in stem else f"{stem}.tar"


def check_unpacked(path: Path) -> None:
    """Raise an MsdeError if a file is compressed and of a kind that is not streamed."""
    if path.suffix.lower() in COMPRESSED and source_name(path).lower().endswith(NOT_STREAMED):
        raise MsdeError(f"input {path} cannot be read while it is compressed; unpack it")
