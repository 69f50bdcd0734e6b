"""SD files: mol blocks with 3D coordinates, separated by lines of four dollar signs.

Numbers among the properties (`> <NAME>`) are labels: those named in `options.label_columns`, or
all that hold numbers in every one of the first 1,000 records that has them. Stereochemistry comes
from the coordinates.

Refused are, besides what RDKit cannot parse,

- radicals, unless `options.keep_radicals`: the bonds of most SD files with geometry were found
  from positions by a program, and then an unpaired electron marks a bond that it missed. Even
  `M  RAD` lines do not tell, for programs write what they believe;
- a geometry that lacks some of the hydrogens that the bonds imply (one without any is taken, for
  a molecule that is to lose them).

With `options.group_conformers` neighbouring records with the same title, atoms and bonds are
conformers of one molecule; those with another stereoisomer are left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rdkit import Chem

from msde.chem.parsing import mol_from_molblock
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.chemistry import check_complete, check_radicals, merge_conformers
from ..parsing.tables import SAMPLE, is_number, labels_from
from . import (
    Facts,
    Label,
    Options,
    Parsed,
    RawMolecule,
    content,
    open_bytes,
    same_for_all,
    source_name,
)

KEEP_HYDROGENS = False
CHUNK = 1 << 20  # bytes read at a time
MAX_RECORD = 64 << 20  # bytes; a record that goes on for longer is no record
SEPARATOR = b"\n$$$$"
PROPERTY = re.compile(r"^>[^\n]*?<([^\n]+)>[^\n]*\n([^\n]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """The text of one molecule: a record, or several that are its conformers."""

    blocks: tuple[str, ...]
    lines: tuple[int, ...]  # where each begins
    labels: tuple[Label, ...]


def recognises(path: Path) -> bool:
    """Tell by the name."""
    return source_name(path).lower().endswith((".sdf", ".sd", ".mol"))


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Find the labels; all files have to have the same."""
    return Facts(labels=same_for_all(paths, lambda path: find_labels(path, options)))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each record, or each group of them; its name is the title line."""
    labels = find_labels(path, options)
    source = source_name(path)
    with open_bytes(path) as file:
        for group in _groups(records(file, path), options.group_conformers):
            lines, blocks = zip(*group, strict=True)
            name = blocks[0].partition("\n")[0].strip()
            yield RawMolecule(source, lines[0], name, Record(blocks, lines, labels))


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse the mol block; stereochemistry comes from its coordinates."""
    record = content(raw)
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    y = properties(record.blocks[0], record.labels) if record.labels else ()
    mols, lines, failed = [], [], []
    for block, line in zip(record.blocks, record.lines, strict=True):
        try:
            mols.append(mol_from_block(block, keep_hydrogens, options.keep_radicals))
            lines.append(line)
        except MoleculeError as error:
            if len(record.blocks) == 1:
                raise
            failed.append((line, f"conformer: {error}"))
    if not mols:
        raise MoleculeError(failed[0][1].removeprefix("conformer: "))
    if len(record.blocks) == 1:
        return Parsed(mols[0], y)
    mol, dropped = merge_conformers(mols, lines)
    return Parsed(mol, y, dropped=tuple(sorted([*failed, *dropped])))


def mol_from_block(
    block: str, keep_hydrogens: bool, keep_radicals: bool, may_lack_hydrogens: bool = False
) -> Chem.Mol:
    """Parse one mol block, or raise MoleculeError for what the module's first lines list.

    Args:
        may_lack_hydrogens: some of the hydrogens need not be there.
    """
    mol = mol_from_molblock(block, keep_hydrogens)
    if not keep_radicals:
        check_radicals(mol)
    num_atoms = _count_atoms(block)
    if num_atoms is not None and not may_lack_hydrogens:
        check_complete(mol, num_atoms, keep_hydrogens)
    if mol.GetNumConformers() and not mol.GetConformer().Is3D() and _says_3d(block):
        mol.GetConformer().Set3D(True)  # RDKit takes a planar molecule in the plane for a drawing
    return mol


def records(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each record; memory holds one chunk at a time.

    Raises:
        MsdeError: a record does not end.
    """
    line = 1
    rest = b"\n"  # as if a separator came before the first record
    while chunk := file.read(CHUNK):
        # A separator may lie across two chunks: the last piece waits for the next.
        *pieces, rest = (rest + chunk).split(SEPARATOR)
        for piece in pieces:
            yield line, _text(piece)
            line += piece.count(b"\n") + 1
        if len(rest) > MAX_RECORD:
            raise MsdeError(f"{path}: the record that begins in line {line} does not end")
    if rest.partition(b"\n")[2].strip():
        yield line, _text(rest)


def find_labels(path: Path, options: Options) -> tuple[Label, ...]:
    """Return the labels that a file's first records hold, or those that were chosen.

    Raises:
        MsdeError: one was chosen that none of the first records has.
    """
    chosen = options.chosen_labels()
    found: dict[str, bool] = {}  # whether all values are numbers
    with open_bytes(path) as file:
        for _, block in itertools.islice(records(file, path), SAMPLE):
            for name, text in PROPERTY.findall(_tail(block)):
                found[name] = found.get(name, True) and is_number(text)
    if chosen is None:
        return tuple(Label(name) for name, numeric in found.items() if numeric)
    absent = [label.name for label in chosen if label.name not in found]
    if absent:
        raise MsdeError(f"{path} has no property {absent[0]!r}, found {', '.join(found) or 'none'}")
    return chosen


def properties(block: str, labels: tuple[Label, ...]) -> tuple[float, ...]:
    """Return the labels of a record, NaN where it has none."""
    found = dict(PROPERTY.findall(_tail(block)))
    return labels_from([found.get(label.name, "") for label in labels], labels)


def _groups(found: Iterator[tuple[int, str]], together: bool) -> Iterator[list[tuple[int, str]]]:
    """Put neighbours that are conformers of one molecule together."""
    group: list[tuple[int, str]] = []
    key = None
    for line, block in found:
        this = _identity(block) if together else None
        if group and (this is None or this != key):
            yield group
            group = []
        group.append((line, block))
        key = this
    if group:
        yield group


def _identity(block: str) -> tuple | None:
    """Return title, atoms and bonds of a record, or None: it has no title or no such table."""
    lines = block.splitlines()
    if len(lines) < 4 or not lines[0].strip():
        return None
    atoms = _count_atoms(block)
    if atoms is None:
        return None
    elements = tuple(line[31:34] for line in lines[4 : 4 + atoms])
    bonds = itertools.takewhile(lambda line: line[:1] == " ", lines[4 + atoms :])
    return lines[0].strip(), elements, tuple(line[:9] for line in bonds)


def _count_atoms(block: str) -> int | None:
    """Return the number of atoms that a V2000 mol block says it has; None: it is another."""
    start = 0
    for _ in range(3):
        start = block.find("\n", start) + 1
        if not start:
            return None
    counts = block[start : start + 39]
    if "V3000" in counts:
        found = re.search(r"^M  V30 COUNTS (\d+)", block, re.MULTILINE)
        return int(found[1]) if found else None
    return int(counts[:3]) if counts[:3].strip().isdigit() else None


def _says_3d(block: str) -> bool:
    """Tell whether the second line has the dimensions, 3D, in its place."""
    return block.split("\n", 2)[1][20:22] == "3D"


def _tail(block: str) -> str:
    """Return what follows the mol block, with ends of lines made one."""
    return block.partition("M  END")[2].replace("\r", "")


def _text(piece: bytes) -> str:
    """Return a record without the rest of the separator's line that stands before it."""
    return piece.partition(b"\n")[2].decode("utf-8", "replace")
