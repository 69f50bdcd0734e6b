"""The files that inputs of a command name.

Nothing that takes long to import is needed here, so that a wrong path is an error at once.
"""

from __future__ import annotations

import collections
import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from msde.errors import MsdeError

from .names import LMDB_FILE, check_unpacked, source_name
from .options import FORMATS

log = logging.getLogger(__name__)


def expand_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files that inputs name: files, folders, patterns, and lists of files.

    Args:
        inputs: of a folder all files in it and below are meant whose format is known, of LMDB's
            folders their file; `@FILE` names a text file with an input in each line.

    Raises:
        MsdeError: a list cannot be read, or a pattern or folder has no file of a known format.
    """
    found: list[Path] = []
    for given in map(str, inputs):
        path = Path(given)
        if path.is_dir():
            found += _files_of(path)
        elif given.startswith("@") and not path.exists():
            try:
                lines = Path(given[1:]).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise MsdeError(f"list {given[1:]} cannot be read: {error}") from error
            named = [line.strip() for line in lines if line.strip()]
            if given in named:
                raise MsdeError(f"list {given[1:]} names itself; leave that line out")
            found += expand_inputs(named)
        elif path.exists() or not glob.has_magic(given):
            found.append(path)
        else:
            matches = sorted(glob.glob(given, recursive=True))
            if not matches:
                raise MsdeError(f"no file is named like {given}")
            found += expand_inputs(matches)
    return found


def _files_of(folder: Path) -> list[Path]:
    """Return the files in a folder whose format is known, and print how many others there are."""
    if (folder / LMDB_FILE).is_file():
        return [folder / LMDB_FILE]
    from .reading import recognise  # with all that readers import

    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_visible(path)]
    known: list[Path] = []
    others: list[Path] = []
    empty: list[Path] = []
    for path in files:
        kind = empty if not path.stat().st_size else others if recognise(path) is None else known
        kind.append(path)
    if not known:
        raise MsdeError(f"{folder} holds no file of a known format ({', '.join(FORMATS)})")
    if empty:
        log.info(f"{folder}: {len(empty)} of {len(files)} files are empty, as {empty[0].name}")
    if others:
        log.info(
            f"{folder}: {len(others)} of {len(files)} files are of no known format, "
            f"as {others[0].name}"
        )
    return known


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "lock.mdb"


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raise an MsdeError if an input is not a file, has to be unpacked, or shares its name."""
    for path in inputs:
        if not path.is_file():
            raise MsdeError(f"input {path} is not a file")
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(path).decode(errors="replace")
            raise MsdeError(f"the name of {shown} is not in UTF-8; rename it") from error
        check_unpacked(path)
    names = collections.Counter(source_name(path) for path in inputs)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise MsdeError(
            f"two inputs are named {twice}; molecules are known by file name and line, rename one"
        )
