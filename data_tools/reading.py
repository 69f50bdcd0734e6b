"""Files of molecules that users name: their format, and their molecules."""

from __future__ import annotations

import collections
import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.record import MAX_ATOMS
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .parsing.files import LMDB_FILE, source_name, unreadable_as_error
from .readers import FORMATS, Options, get_reader

AUTO = "auto"

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
            with unreadable_as_error(Path(given[1:])):
                lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
            found += expand_inputs([line.strip() for line in lines if line.strip()])
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
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_visible(path)]
    known = [path for path in files if recognise(path) is not None]
    others = len(files) - len(known)
    if not known:
        raise MsdeError(f"{folder} holds no file of a known format ({', '.join(FORMATS)})")
    if others:
        left = next(path for path in files if path not in known)
        log.info(f"{folder}: {others} of {len(files)} files are of no known format, as {left.name}")
    return known


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "lock.mdb"


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raise an MsdeError if an input is not a file, or two have the same name."""
    for path in inputs:
        if not path.is_file():
            raise MsdeError(f"input {path} is not a file")
    names = collections.Counter(source_name(path) for path in inputs)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise MsdeError(
            f"two inputs are named {twice}; molecules are known by file name and line, rename one"
        )


def recognise(path: Path) -> str | None:
    """Return the format that a file looks like, or None.

    Raises:
        MsdeError: the file cannot be read, or is empty.
    """
    with unreadable_as_error(path):
        if not path.stat().st_size:
            raise MsdeError(f"no molecules in {path}: it is empty")
        return next((name for name in FORMATS if get_reader(name).recognises(path)), None)


def choose_format(inputs: Sequence[Path]) -> str:
    """Return the format that all inputs look like.

    Raises:
        MsdeError: there is none, or not one for all.
    """
    found = []
    for path in inputs:
        format = recognise(path)
        if format is None:
            known = ", ".join(FORMATS)
            raise MsdeError(f"{path} looks like no known format; give --format ({known})")
        if found and format != found[0]:
            raise MsdeError(
                f"{inputs[0]} looks like {found[0]}, {path} like {format}; convert them one by one "
                "and join the data sets with data_tools.merge, or give --format"
            )
        found.append(format)
    return found[0]


def read_molecules(
    path: Path, keep_hydrogens: bool = False, trust_pickle: bool = False
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return the molecules of a file, and their names and lines.

    A molecule that cannot be read is the MoleculeError with the reason, in its place. Conformers
    are not made.

    Raises:
        MsdeError: the file cannot be read, or its format is not known.
    """
    if not path.is_file():
        raise MsdeError(f"input {path} cannot be read: it is neither a file nor a folder of shards")
    format = recognise(path)
    if format is None:
        known = ", ".join(FORMATS)
        raise MsdeError(f"{path}: format not known by its name; expected a folder or {known}")
    options = Options(
        keep_hydrogens=keep_hydrogens,
        conformers=0,
        keep_radicals=True,
        max_atoms=MAX_ATOMS,
        trust_pickle=trust_pickle,
    )
    reader = get_reader(format, options)
    molecules: list[Any] = []
    names, lines = [], []
    for raw in reader.read(path):
        names.append(raw.name)
        lines.append(raw.line)
        try:
            molecules.append(reader.parse(raw).mol)
        except MoleculeError as error:
            molecules.append(error)
    if not molecules:
        raise MsdeError(f"no molecules in {path}")
    return molecules, {"name": np.array(names), "line": np.array(lines)}
