"""Files of molecules that users name: their format, and their molecules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.record import MAX_ATOMS
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .parsing.files import unreadable_as_error
from .readers import FORMATS, Options, get_reader


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
