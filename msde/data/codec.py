"""Blocks of molecules as bytes: columns of raw little-endian arrays, versioned and checksummed.

A block is a header, a table of columns and the columns' bytes:

    header   4s magic 'MSDB', u2 version, u2 columns, u4 molecules, u4 CRC32, u8 total bytes
    column   24s name, 4s dtype, u4 width, u8 rows, u8 offset        (one entry a column)
    body     each column, aligned to 8 bytes

The CRC32 covers every byte but its own four. Readers ignore columns that they do not know, so a
later release can add columns without a new version. No pickles are read.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msde.chem.record import MoleculeRecord, Origin

VERSION = 2
MAGIC = b"MSDB"
_HEADER = struct.Struct("<4sHHIIQ")
_COLUMN = struct.Struct("<24s4sIQQ")
_CRC_AT = 12  # offset of the CRC32 in the header

_ANY = -1  # width that depends on the data set
# column -> (dtypes allowed, values a row, per-molecule counts whose product is its number of rows)
_COLUMNS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "uid": (("<u8",), 1, ()),
    "num_atoms": (("<u4",), 1, ()),
    "num_bonds": (("<u4",), 1, ()),
    "num_extended": (("<u4",), 1, ()),
    "num_conformers": (("<u4",), 1, ()),
    "num_forces": (("<u4",), 1, ()),
    "name_bytes": (("<u4",), 1, ()),
    "origin": (("|u1",), 1, ()),
    "y": (("<f8",), _ANY, ()),
    "z": (("|u1",), 1, ("num_atoms",)),
    "x": (("|u1",), 9, ("num_atoms",)),
    "cip": (("|u1",), 1, ("num_atoms",)),
    "bond_index": (("|u1", "<u2"), 2, ("num_bonds",)),
    "bond_attr": (("|u1",), 3, ("num_bonds",)),
    "extended_source": (("|u1", "<u2"), 1, ("num_extended",)),
    "extended_degree": (("|u1", "<u2"), 1, ("num_atoms",)),
    "pos": (("<f4",), 3, ("num_conformers", "num_atoms")),
    "forces": (("<f4",), 3, ("num_forces", "num_atoms")),
    "name": (("|u1",), 1, ("name_bytes",)),
}


def row_counts(column: str) -> tuple[str, ...]:
    """Return the per-molecule counts whose product is a column's number of rows in a molecule."""
    return _COLUMNS[column][2]


class BlockError(ValueError):
    """Bytes that are not an intact block of a version that this release reads."""


@dataclass(frozen=True)
class MoleculeColumns:
    """Many molecules as columns: one row a molecule, or the molecules' rows one after another."""

    uid: np.ndarray  # (num_molecules,) u8
    num_atoms: np.ndarray  # (num_molecules,) u4, and so the next five
    num_bonds: np.ndarray
    num_extended: np.ndarray
    num_conformers: np.ndarray
    num_forces: np.ndarray  # conformers that forces are known for: all or none
    name_bytes: np.ndarray
    origin: np.ndarray  # (num_molecules,) u1, flags of chem.record.Origin
    y: np.ndarray  # (num_molecules, num_labels) f8, NaN where missing
    z: np.ndarray  # (sum num_atoms,) u1
    x: np.ndarray  # (sum num_atoms, 9) u1
    cip: np.ndarray  # (sum num_atoms,) u1
    bond_index: np.ndarray  # (sum num_bonds, 2) u1 or u2, atoms counted within the molecule
    bond_attr: np.ndarray  # (sum num_bonds, 3) u1
    extended_source: np.ndarray  # (sum num_extended,) u1 or u2, within the molecule, by target
    extended_degree: np.ndarray  # (sum num_atoms,) u1 or u2, edges of each target
    pos: np.ndarray  # (sum num_conformers * num_atoms, 3) f4, A
    forces: np.ndarray  # (sum num_forces * num_atoms, 3) f4
    name: np.ndarray  # (sum name_bytes,) u1, UTF-8

    def __len__(self) -> int:
        return len(self.uid)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all columns."""
        return sum(getattr(self, name).nbytes for name in _COLUMNS)

    def rows_per_molecule(self, column: str) -> np.ndarray:
        """Return how many rows of a column each molecule owns, (num_molecules,) int64."""
        rows = np.ones(len(self), np.int64)
        for count in _COLUMNS[column][2]:
            rows = rows * getattr(self, count)
        return rows

    @functools.cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        """Where the rows of each molecule start in each column, (num_molecules + 1,) int64."""
        by_counts: dict[tuple[str, ...], np.ndarray] = {}
        for name, (_, _, counts) in _COLUMNS.items():
            if counts not in by_counts:
                by_counts[counts] = np.append(0, np.cumsum(self.rows_per_molecule(name)))
        return {name: by_counts[counts] for name, (_, _, counts) in _COLUMNS.items()}

    def starts(self, column: str) -> np.ndarray:
        """Return the first row of each molecule in a column, (num_molecules,) int64."""
        return self._offsets[column][:-1]

    def take(self, places: np.ndarray) -> MoleculeColumns:
        """Return the molecules at `places`, in that order."""
        taken: dict[str, np.ndarray] = {}
        row_cache: dict[tuple[str, ...], np.ndarray] = {(): places}
        for name, (_, _, counts) in _COLUMNS.items():
            if counts not in row_cache:
                row_cache[counts] = _ragged_rows(self._offsets[name], places)
            taken[name] = _take_rows(getattr(self, name), row_cache[counts])
        return MoleculeColumns(**taken)

    def part(self, first: int, last: int) -> MoleculeColumns:
        """Return molecules first to last - 1 as views."""
        return MoleculeColumns(
            **{
                name: getattr(self, name)[at[first] : at[last]]
                for name, at in self._offsets.items()
            }
        )

    def bare(self) -> MoleculeColumns:
        """Return the molecules without names, labels and forces."""
        none = np.zeros_like(self.num_forces)
        return dataclasses.replace(
            self,
            num_forces=none,
            forces=self.forces[:0],
            name_bytes=none,
            name=self.name[:0],
            y=self.y[:, :0],
        )

    def with_conformers(self, numbers: np.ndarray) -> MoleculeColumns:
        """Return the molecules with one conformer each and without forces.

        Args:
            numbers: (num_molecules,) int64, the conformer of each, counted within the molecule.
        """
        conformers = self.num_conformers.astype(np.int64)
        starts = np.append(0, np.cumsum(np.repeat(self.num_atoms, conformers), dtype=np.int64))
        chosen = np.cumsum(conformers) - conformers + numbers
        return dataclasses.replace(
            self,
            num_conformers=np.ones_like(self.num_conformers),
            pos=_take_rows(self.pos, _ragged_rows(starts, chosen)),
            num_forces=np.zeros_like(self.num_forces),
            forces=self.forces[:0],
        )

    def record(self, place: int) -> MoleculeRecord:
        """Return one molecule as a record."""
        one = self.part(place, place + 1)
        num_atoms = int(one.num_atoms[0])
        return MoleculeRecord(
            uid=int(one.uid[0]),
            name=one.name.tobytes().decode(),
            z=one.z,
            x=one.x,
            cip=one.cip,
            bond_index=one.bond_index.astype("<u2"),
            bond_attr=one.bond_attr,
            extended_source=one.extended_source.astype("<u2"),
            extended_degree=one.extended_degree.astype("<u2"),
            pos=one.pos.reshape(-1, num_atoms, 3),
            forces=one.forces.reshape(-1, num_atoms, 3),
            y=one.y[0],
            origin=Origin(int(one.origin[0])),
        )


def _ragged_rows(offsets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the rows of the molecules at `places`, where molecule m owns offsets[m : m + 2]."""
    # The time is that of reading and writing memory, of which 32 bits take half.
    dtype = np.int32 if offsets[-1] < 2**31 else np.int64
    starts = offsets[places]
    wanted = offsets[places + 1] - starts
    ends = np.cumsum(wanted)
    total = int(ends[-1]) if len(ends) else 0
    rows: np.ndarray = np.arange(total, dtype=dtype if total < 2**31 else np.int64)
    rows += np.repeat((starts - ends + wanted).astype(rows.dtype), wanted)
    return rows


def _take_rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return column[rows]; a row of several values is copied as one item."""
    width = int(np.prod(column.shape[1:]))
    if column.ndim == 1 or width == 0:
        return column.take(rows, axis=0)
    column = np.ascontiguousarray(column)
    whole = column.view(np.dtype((np.void, column.itemsize * width))).take(rows)
    return whole.view(column.dtype).reshape(-1, width)


def columns_from_records(records: Sequence[MoleculeRecord]) -> MoleculeColumns:
    """Return records as columns; atom numbers take one byte each if all of them fit."""
    names = [r.name.encode() for r in records]
    wide = max(len(r.z) for r in records) > 256
    index_dtype = "<u2" if wide else "|u1"

    def counts(values: list[int]) -> np.ndarray:
        return np.array(values, "<u4")

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(r, field) for r in records])

    return MoleculeColumns(
        uid=np.array([r.uid for r in records], "<u8"),
        num_atoms=counts([len(r.z) for r in records]),
        num_bonds=counts([len(r.bond_index) for r in records]),
        num_extended=counts([len(r.extended_source) for r in records]),
        num_conformers=counts([len(r.pos) for r in records]),
        num_forces=counts([len(r.forces) for r in records]),
        name_bytes=counts([len(n) for n in names]),
        origin=np.array([r.origin for r in records], "u1"),
        y=np.stack([r.y for r in records]),
        z=joined("z"),
        x=joined("x"),
        cip=joined("cip"),
        bond_index=joined("bond_index").astype(index_dtype),
        bond_attr=joined("bond_attr"),
        extended_source=joined("extended_source").astype(index_dtype),
        extended_degree=joined("extended_degree").astype(index_dtype),
        pos=np.concatenate([r.pos.reshape(-1, 3) for r in records]),
        forces=np.concatenate([r.forces.reshape(-1, 3) for r in records]),
        name=np.frombuffer(b"".join(names), "u1"),
    )


def concatenate(parts: Sequence[MoleculeColumns]) -> MoleculeColumns:
    """Return the molecules of all parts, in order; they must have the same labels."""
    if len(parts) == 1:
        return parts[0]
    return MoleculeColumns(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS}
    )


def encode(columns: MoleculeColumns) -> bytes:
    """Serialise columns to a block."""
    arrays = [np.ascontiguousarray(getattr(columns, name)) for name in _COLUMNS]
    offset = _HEADER.size + _COLUMN.size * len(arrays)
    table, body = [], []
    for (name, (dtypes, width, _)), array in zip(_COLUMNS.items(), arrays, strict=True):
        if array.dtype.str not in dtypes:
            raise TypeError(f"column {name} has dtype {array.dtype.str}, expected {dtypes}")
        if width == _ANY:
            width = array.shape[1]
        padding = -offset % 8
        offset += padding
        entry = (name.encode(), array.dtype.str.encode(), width, len(array), offset)
        table.append(_COLUMN.pack(*entry))
        body.append(b"\0" * padding + array.tobytes())
        offset += array.nbytes
    rest = b"".join(table) + b"".join(body)
    head = _HEADER.pack(MAGIC, VERSION, len(arrays), len(columns), 0, offset)
    crc = _checksum(head, rest)
    return head[:_CRC_AT] + struct.pack("<I", crc) + head[_CRC_AT + 4 :] + rest


def decode(block: bytes | memoryview) -> MoleculeColumns:
    """Read a block back; arrays are views of its memory.

    Raises:
        BlockError: the bytes are damaged, truncated or of another version.
    """
    block = memoryview(block)
    if len(block) < _HEADER.size or bytes(block[:4]) != MAGIC:
        raise BlockError("not a molecule block (magic bytes missing)")
    _, version, num_columns, num_molecules, crc, total = _HEADER.unpack_from(block)
    if total != len(block):
        raise BlockError(f"block holds {len(block)} bytes, its header says {total}")
    if _checksum(block[: _HEADER.size], block[_HEADER.size :]) != crc:
        raise BlockError("block is damaged (CRC32 differs)")
    if version != VERSION:
        raise BlockError(f"block version {version}; this release reads version {VERSION}")
    columns: dict[str, np.ndarray] = {}
    for c in range(num_columns):
        entry = _COLUMN.unpack_from(block, _HEADER.size + c * _COLUMN.size)
        name, dtype = (text.rstrip(b"\0").decode() for text in entry[:2])
        width, rows, offset = entry[2:]
        if name in _COLUMNS:
            array = np.frombuffer(block, np.dtype(dtype), rows * width, offset)
            flat = _COLUMNS[name][1] == 1
            columns[name] = array if flat else array.reshape(rows, width)
    missing = _COLUMNS.keys() - columns.keys()
    if missing:
        raise BlockError(f"block lacks the columns {', '.join(sorted(missing))}")
    decoded = MoleculeColumns(**columns)
    if len(decoded) != num_molecules:
        raise BlockError(f"block holds {len(decoded)} molecules, its header says {num_molecules}")
    for field in dataclasses.fields(decoded):
        rows, expected = len(columns[field.name]), decoded._offsets[field.name][-1]
        if rows != expected:
            raise BlockError(f"column {field.name} has {rows} rows, expected {expected}")
    return decoded


def block_length(header: bytes | memoryview) -> int | None:
    """Return the length of the block that starts with these bytes, or None: none does."""
    if len(header) < _HEADER.size or bytes(header[:4]) != MAGIC:
        return None
    return _HEADER.unpack_from(header)[-1]


def _checksum(head: bytes | memoryview, rest: bytes | memoryview) -> int:
    crc = zlib.crc32(head[:_CRC_AT])
    return zlib.crc32(rest, zlib.crc32(head[_CRC_AT + 4 :], crc))
