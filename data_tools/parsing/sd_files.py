"""SD files: records between lines of four dollar signs, mol blocks, and tables beside them."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rdkit import Chem

from msde.chem.parsing import mol_from_molblock
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .chemistry import check_complete, check_radicals, is_drawing
from .files import WINDOWS, has_suffix, open_bytes
from .labels import labels_from
from .reader import BaseReader
from .tables import dialect_of, rows
from .types import Facts, Scanned, attempt

CHUNK = 1 << 20  # bytes read at a time
PROPERTY = re.compile(r"<(.+)>")  # the name in the first line of a property
MAX_RECORD = 64 << 20  # bytes; a longer record is no record
SEPARATOR = b"\n$$$$"


class Block(NamedTuple):
    """A record of an SD file."""

    line: int  # its first
    text: str
    is_guessed: bool  # the text is not UTF-8 and was read as Windows-1252

    @property
    def title(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0].strip()


def records(file: BinaryIO, path: Path, encoding: str | None = None) -> Iterator[Block]:
    """Yield each record; memory holds one chunk at a time.

    Args:
        encoding: None: UTF-16 by its mark, else UTF-8, else, record by record, Windows-1252.

    Raises:
        MsdeError: a record does not end, or the file is binary.
    """
    line = 1
    rest = b"\n"  # so that the first record follows a separator's line, too
    for chunk in _chunks(file, encoding):
        if b"\0" in chunk:
            raise MsdeError(f"{path} is binary, expected the text of an SD file")
        # A separator may lie across two chunks: the last piece waits for the next.
        *pieces, rest = (rest + chunk).split(SEPARATOR)
        for piece in pieces:
            yield _block(line, piece)
            line += piece.count(b"\n") + 1
        if len(rest) > MAX_RECORD:
            raise MsdeError(f"{path}: the record that begins in line {line} does not end")
    if rest.partition(b"\n")[2].strip():
        yield _block(line, rest)


def _chunks(file: BinaryIO, named: str | None) -> Iterator[bytes]:
    """Yield the bytes of a file as UTF-8 without byte order mark, lines ending in line feeds."""
    head = file.peek(CHUNK)  # type: ignore[attr-defined]
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        named = named or "utf-16"
    if named or (b"\r" in head and b"\n" not in head):
        text = io.TextIOWrapper(file, named or "latin-1")
        for part in iter(functools.partial(text.read, CHUNK), ""):
            yield part.encode("utf-8" if named else "latin-1")
        text.detach()
        return
    yield from iter(functools.partial(file.read, CHUNK), b"")


def mol_from_block(
    block: str, keep_hydrogens: bool, keep_radicals: bool, may_lack_hydrogens: bool = False
) -> Chem.Mol:
    """Parse one mol block.

    Args:
        may_lack_hydrogens: some of the hydrogens may be absent.

    Raises:
        MoleculeError: RDKit cannot parse it, it has radicals, or its geometry lacks hydrogens.
    """
    if block.count("\nM  END") > 1:
        raise MoleculeError("a second molecule begins before $$$$; put a line $$$$ between them")
    mol = mol_from_molblock(block, keep_hydrogens)
    if not keep_radicals:
        check_radicals(mol)
    _set_dimension(mol, block)
    num_atoms = count_atoms(block)
    if num_atoms is not None and not may_lack_hydrogens and not is_drawing(mol):
        check_complete(mol, num_atoms, keep_hydrogens)
    return mol


def atoms_from_block(block: str) -> Chem.Mol:
    """Return the atoms, charges and positions of a mol block, without chemistry."""
    mol = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False, strictParsing=False)
    if mol is None:
        raise MoleculeError("cannot be parsed: mol block syntax")
    _set_dimension(mol, block)
    return mol


def count_atoms(block: str) -> int | None:
    """Return the number of atoms in the counts line of a mol block; None: there is none."""
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


def _set_dimension(mol: Chem.Mol, block: str) -> None:
    """Mark a conformer as 3D if the second line has 3D in the columns of dimensions.

    RDKit takes a planar molecule in the plane for a drawing.
    """
    if is_drawing(mol) and block.split("\n", 2)[1][20:22] == "3D":
        mol.GetConformer().Set3D(True)


def _block(line: int, piece: bytes) -> Block:
    """Return a record without the rest of the separator's line before it."""
    text = piece.partition(b"\n")[2]
    try:
        return Block(line, text.decode(), False)
    except UnicodeDecodeError:
        # Latin-1 gives meaning to the five bytes that Windows-1252 leaves open.
        for encoding in (WINDOWS, "latin-1"):
            with contextlib.suppress(UnicodeDecodeError):
                return Block(line, text.decode(encoding), True)
        raise


def properties(block: str) -> dict[str, list[str]]:
    """Return the values of a record's properties by name; those of several lines hold line feeds.

    A property is a line `> <NAME>` (or `> DT12`, of a number), then its value, which ends at a
    blank line. One that stands there several times has as many values.
    """
    found: dict[str, list[str]] = {}
    lines = iter(block.partition("M  END")[2].replace("\r", "").split("\n"))
    for line in lines:
        if line.startswith(">") and line[1:].strip():
            named = PROPERTY.search(line)
            value = itertools.takewhile(str.strip, lines)
            name = named[1] if named else line[1:].strip()
            found.setdefault(name, []).append("\n".join(value).strip())
    return found


class SDFWithTable(BaseReader):
    """An SD file whose labels stand in a CSV table beside it, a row a record.

    The table may be among the inputs; its rows are read with the SD file.
    """

    suffixes = (".sdf",)
    follows = ("delimiter", "encoding")

    def table_names(self, path: Path) -> Sequence[str]:
        """Return where the table of an SD file may lie, relative to its folder."""
        raise NotImplementedError

    def join(self, block: Block, cells: list[str]) -> Any:
        """Return the payload of a record and its row.

        Raises:
            MoleculeError: the row is another molecule's.
        """
        raise NotImplementedError

    def name_of(self, block: Block, cells: list[str]) -> str:
        """Return the name of a record."""
        return block.title

    def find_table(self, path: Path) -> Path | None:
        """Return the table of an SD file, or None."""
        places = (path.parent / name for name in self.table_names(path))
        return next((place for place in places if place.is_file()), None)

    def table(self, path: Path) -> Path:
        """Return the table of an SD file.

        Raises:
            MsdeError: it is not there.
        """
        found = self.find_table(path)
        if found is not None:
            return found
        raise MsdeError(
            f"{self.table_names(path)[0]} is not beside {path}; put it there, or use --format sdf "
            "to go without labels"
        )

    def companions(self, path: Path) -> list[Path]:
        """Return the table of an SD file, if it is there."""
        found = self.find_table(path) if has_suffix(path, self.suffixes) else None
        return [] if found is None else [found]

    def facts(self, paths: Sequence[Path]) -> Facts:
        """Return the facts of the SD files among the inputs."""
        sdfs = [path for path in paths if has_suffix(path, self.suffixes)]
        if not sdfs:
            raise MsdeError(f"{paths[0]} is no SD file; give the one that it belongs to")
        return super().facts(sdfs)

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each record with the labels of its row; a table itself yields nothing."""
        if not has_suffix(path, self.suffixes):
            return
        table = self.table(path)
        labels = self.survey(path)[0].labels
        body = rows(table, dialect_of(table, self.options))
        header = next(body)[1]
        places = [header.index(label.name) for label in labels]

        def joined(block: Block, cells: list[str]) -> tuple[Any, tuple[float, ...]]:
            if len(cells) != len(header):
                raise MoleculeError("the table has no row for this record")
            payload = self.join(block, cells)
            return payload, labels_from([cells[place] for place in places], labels)

        with open_bytes(path) as file:
            for block in records(file, path, self.options.encoding):
                cells = next(body, (0, []))[1]
                yield block.line, self.name_of(block, cells), *attempt(joined, block, cells)
