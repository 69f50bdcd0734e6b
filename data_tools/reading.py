"""Files of molecules that users name: their format, and their molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.record import MAX_ATOMS
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .names import check_unpacked
from .options import AUTO, FORMATS, Label, Options
from .parsing.files import has_suffix, unreadable_as_error
from .parsing.kinds import HEAD, kind_of
from .pipeline.chunks import result_or_reason
from .readers import get_reader

# What to do with files of formats that are not read.
REMEDIES = {
    (".pdb", ".ent", ".pdbqt", ".mol2"): (
        "convert it to an SD file, as with Open Babel: obabel FILE -O FILE.sdf"
    ),
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV",
}


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
            with open(path, "rb") as file:
                kind = kind_of(file.read(HEAD))
            remedy = f"give --format ({', '.join(FORMATS)}), or unpack or export it as one of these"
            others = (todo for suffixes, todo in REMEDIES.items() if has_suffix(path, suffixes))
            raise MsdeError(
                f"{path} looks like no known format, it is {kind}; {next(others, remedy)}"
            )
        if found and format != found[0]:
            raise MsdeError(
                f"{inputs[0]} looks like {found[0]}, {path} like {format}; convert them one by one "
                "and join the data sets with data_tools.merge, or give --format"
            )
        found.append(format)
    return found[0]


@dataclass(frozen=True)
class Molecules:
    """The molecules of a file, a row each, in its order."""

    mols: list[Chem.Mol | MoleculeError]  # the reason where one cannot be read
    names: list[str]
    lines: list[int]
    notes: dict[int, str]  # by row: what is unusual
    labels: tuple[Label, ...]
    y: np.ndarray  # (num_molecules, num_labels), NaN where missing


def read_molecules(path: Path, options: Options, format: str = AUTO) -> Molecules:
    """Return the molecules of a file; conformers are not made.

    Args:
        options: those of readers; radicals and large molecules are kept.

    Raises:
        MsdeError: the file cannot be read, or its format is not known.
    """
    if not path.is_file():
        raise MsdeError(f"input {path} cannot be read: it is neither a file nor a folder of shards")
    check_unpacked(path)
    format = choose_format([path]) if format == AUTO else format
    options = replace(options, conformers=0, keep_radicals=True, max_atoms=MAX_ATOMS)
    reader = get_reader(format, options)
    labels = reader.facts([path]).labels
    found = Molecules([], [], [], {}, labels, np.zeros((0, len(labels))))
    y: list[Sequence[float]] = []
    for raw in reader.read(path):
        found.names.append(raw.name)
        found.lines.append(raw.line)
        values = raw.y  # those of a row whose SMILES cannot be read, too
        parsed = result_or_reason(reader.parse, raw)
        if isinstance(parsed, str):
            found.mols.append(MoleculeError(parsed))
        else:
            found.mols.append(parsed.mol)
            values = parsed.y
            if parsed.notes:
                found.notes[len(y)] = "; ".join(parsed.notes)
        y.append(values if len(values) else [np.nan] * len(labels))
    if not y:
        raise MsdeError(f"no molecules in {path}")
    return replace(found, y=np.array(y, np.float64).reshape(len(y), len(labels)))
