"""The names of files of molecules."""

from __future__ import annotations

from pathlib import Path

LMDB_FILE = "data.mdb"  # of an LMDB data set that is a folder
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


def source_name(path: Path) -> str:
    """Return the name that identifies a file's molecules, the same with and without .gz.

    An archive that is named after the one file inside has that file's name, and LMDB's file the
    name of its folder.
    """
    if path.name == LMDB_FILE:
        return path.resolve().parent.name
    ending = next((end for end in ARCHIVES[1:] if path.name.lower().endswith(end)), None)
    if ending is None:
        return path.name.removesuffix(".gz")
    stem = path.name[: -len(ending)]
    return stem if "." in stem else f"{stem}.tar"
