"""Blocks of molecules as bytes: columns of raw little-endian arrays, versioned and checksummed.

A block is a header, a table of columns and the columns' bytes:

    header   4s magic 'MSDB', u2 version, u2 columns, u4 molecules, u4 CRC32, u8 total bytes
    column   24s name, 4s dtype, u4 width, u8 rows, u8 offset        (one entry a column)
    body     each column, aligned to 8 bytes

The CRC32 covers every byte but its own four. Readers ignore columns that they do not know, so a
later release can add columns without a new version. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msde.molecule import MoleculeRecord

VERSION = 1
_MAGIC = b"MSDB"
_HEADER = struct.Struct("<4sHHIIQ")
_COLUMN = struct.Struct("<24s4sIQQ")
_CRC_AT = 12  # offset of the CRC32 in the header

# column -> (dtypes allowed, values a row, per-molecule counts whose product is its number of rows)
_COLUMNS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "uid": (("<u8",), 1, ()),
    "num_atoms": (("<u4",), 1, ()),
    "num_bonds": (("<u4",), 1, ()),
    "num_extended": (("<u4",), 1, ()),
    "num_conformers": (("<u4",), 1, ()),
    "name_bytes": (("<u4",), 1, ()),
    "z": (("|u1",), 1, ("num_atoms",)),
    "x": (("|u1",), 9, ("num_atoms",)),
    "cip": (("|u1",), 1, ("num_atoms",)),
    "bond_index": (("|u1", "<u2"), 2, ("num_bonds",)),
    "bond_attr": (("|u1",), 3, ("num_bonds",)),
    "extended_index": (("|u1", "<u2"), 2, ("num_extended",)),
    "pos": (("<f4",), 3, ("num_conformers", "num_atoms")),
    "name": (("|u1",), 1, ("name_bytes",)),
}


class BlockError(ValueError):
    """Bytes that are not an intact block of a version this release reads."""


@dataclass(frozen=True)
class MoleculeColumns:
    """Many molecules as columns: one row a molecule, or the molecules' rows one after another."""

    uid: np.ndarray  # (num_molecules,) u8
    num_atoms: np.ndarray  # (num_molecules,) u4, and so the next four
    num_bonds: np.ndarray
    num_extended: np.ndarray
    num_conformers: np.ndarray
    name_bytes: np.ndarray
    z: np.ndarray  # (sum num_atoms,) u1
    x: np.ndarray  # (sum num_atoms, 9) u1
    cip: np.ndarray  # (sum num_atoms,) u1
    bond_index: np.ndarray  # (sum num_bonds, 2) u1 or u2, atoms counted within the molecule
    bond_attr: np.ndarray  # (sum num_bonds, 3) u1
    extended_index: np.ndarray  # (sum num_extended, 2) u1 or u2, within the molecule
    pos: np.ndarray  # (sum num_conformers * num_atoms, 3) f4, A
    name: np.ndarray  # (sum name_bytes,) u1, UTF-8

    def __len__(self) -> int:
        return len(self.uid)

    def rows_per_molecule(self, column: str) -> np.ndarray:
        """Return how many rows of a column each molecule owns, (num_molecules,)."""
        rows = np.ones(len(self), np.int64)
        for count in _COLUMNS[column][2]:
            rows = rows * getattr(self, count)
        return rows

    def take(self, places: np.ndarray) -> MoleculeColumns:
        """Return the molecules at `places`, in that order."""
        taken: dict[str, np.ndarray] = {}
        row_cache: dict[tuple[str, ...], np.ndarray] = {}
        for name, (_, _, counts) in _COLUMNS.items():
            if counts not in row_cache:
                row_cache[counts] = _ragged_rows(self.rows_per_molecule(name), places)
            taken[name] = getattr(self, name)[row_cache[counts]]
        return MoleculeColumns(**taken)

    def record(self, place: int) -> MoleculeRecord:
        """Return one molecule as a record."""
        one = self.take(np.array([place]))
        return MoleculeRecord(
            uid=int(one.uid[0]),
            name=one.name.tobytes().decode(),
            z=one.z,
            x=one.x,
            cip=one.cip,
            bond_index=one.bond_index.astype("<u2"),
            bond_attr=one.bond_attr,
            extended_index=one.extended_index.astype("<u2"),
            pos=one.pos.reshape(int(one.num_conformers[0]), -1, 3),
        )


def _ragged_rows(counts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the row numbers of the molecules at `places`, where molecule m owns counts[m] rows."""
    starts = np.cumsum(counts) - counts
    wanted = counts[places]
    shift = starts[places] - (np.cumsum(wanted) - wanted)
    return np.arange(wanted.sum()) + np.repeat(shift, wanted)


def columns_from_records(records: Sequence[MoleculeRecord]) -> MoleculeColumns:
    """Lay records out as columns; local atom numbers take one byte where all of them fit."""
    names = [r.name.encode() for r in records]
    wide = max(len(r.z) for r in records) > 256
    index_dtype = "<u2" if wide else "|u1"

    def counts(values: list[int]) -> np.ndarray:
        return np.array(values, "<u4")

    return MoleculeColumns(
        uid=np.array([r.uid for r in records], "<u8"),
        num_atoms=counts([len(r.z) for r in records]),
        num_bonds=counts([len(r.bond_index) for r in records]),
        num_extended=counts([len(r.extended_index) for r in records]),
        num_conformers=counts([len(r.pos) for r in records]),
        name_bytes=counts([len(n) for n in names]),
        z=np.concatenate([r.z for r in records]),
        x=np.concatenate([r.x for r in records]),
        cip=np.concatenate([r.cip for r in records]),
        bond_index=np.concatenate([r.bond_index for r in records]).astype(index_dtype),
        bond_attr=np.concatenate([r.bond_attr for r in records]),
        extended_index=np.concatenate([r.extended_index for r in records]).astype(index_dtype),
        pos=np.concatenate([r.pos.reshape(-1, 3) for r in records]),
        name=np.frombuffer(b"".join(names), "u1"),
    )


def concatenate(parts: Sequence[MoleculeColumns]) -> MoleculeColumns:
    """Return the molecules of all parts, in order."""
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
        padding = -offset % 8
        offset += padding
        entry = (name.encode(), array.dtype.str.encode(), width, len(array), offset)
        table.append(_COLUMN.pack(*entry))
        body.append(b"\0" * padding + array.tobytes())
        offset += array.nbytes
    rest = b"".join(table) + b"".join(body)
    head = _HEADER.pack(_MAGIC, VERSION, len(arrays), len(columns), 0, offset)
    crc = _checksum(head, rest)
    return head[:_CRC_AT] + struct.pack("<I", crc) + head[_CRC_AT + 4 :] + rest


def decode(block: bytes | memoryview) -> MoleculeColumns:
    """Read a block back; arrays are views of its memory.

    Raises:
        BlockError: the bytes are damaged, truncated or of another version.
    """
    block = memoryview(block)
    if len(block) < _HEADER.size or bytes(block[:4]) != _MAGIC:
        raise BlockError("not a molecule block (magic bytes missing)")
    _, version, num_columns, num_molecules, crc, total = _HEADER.unpack_from(block)
    if version != VERSION:
        raise BlockError(f"block version {version}; this release reads version {VERSION}")
    if total != len(block):
        raise BlockError(f"block holds {len(block)} bytes, its header says {total}")
    if _checksum(block[: _HEADER.size], block[_HEADER.size :]) != crc:
        raise BlockError("block is damaged (CRC32 differs)")
    columns: dict[str, np.ndarray] = {}
    for c in range(num_columns):
        entry = _COLUMN.unpack_from(block, _HEADER.size + c * _COLUMN.size)
        name, dtype = (text.rstrip(b"\0").decode() for text in entry[:2])
        width, rows, offset = entry[2:]
        if name in _COLUMNS:
            array = np.frombuffer(block, np.dtype(dtype), rows * width, offset)
            columns[name] = array.reshape(rows, width) if width > 1 else array
    missing = _COLUMNS.keys() - columns.keys()
    if missing:
        raise BlockError(f"block lacks the columns {', '.join(sorted(missing))}")
    decoded = MoleculeColumns(**columns)
    if len(decoded) != num_molecules:
        raise BlockError(f"block holds {len(decoded)} molecules, its header says {num_molecules}")
    for field in dataclasses.fields(decoded):
        rows, expected = len(columns[field.name]), decoded.rows_per_molecule(field.name).sum()
        if rows != expected:
            raise BlockError(f"column {field.name} has {rows} rows, expected {expected}")
    return decoded


def _checksum(head: bytes | memoryview, rest: bytes | memoryview) -> int:
    crc = zlib.crc32(head[:_CRC_AT])
    return zlib.crc32(rest, zlib.crc32(head[_CRC_AT + 4 :], crc))
