"""Converted molecules written to a new folder of shards, for `merge`, `split` and `reshard`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msde.data import codec, manifest
from msde.data.codec import MoleculeColumns
from msde.data.integrity import list_problems
from msde.data.shards import read_manifest, write_manifest, write_shard
from msde.errors import DataDamaged, DiskFull, MsdeError
from msde.files import LOCK, locked, make_output

from .parts import LISTS, SHARD_BYTES, SHARD_MOLECULES, count_origins, join_files

ATOM_NUMBERS = ("bond_index", "extended_source", "extended_degree")  # columns of one byte or two
_OURS = re.compile(r"(shard-\d{5}\.(lmdb|idx)|(rejects|notes)\.jsonl|\..*\.tmp|\.lock)")


def prepare_output(output: Path, sources: Sequence[Path]) -> None:
    """Make the folder, remove the shards of an interrupted run and check the free space.

    Raises:
        MsdeError: it holds something else.
        DiskFull: there is not enough room.
    """
    prepare_outputs([output], sources)


def prepare_outputs(
    outputs: Sequence[Path], sources: Sequence[Path], finished: Sequence[Path] = ()
) -> None:
    """Prepare folders on one disk that the molecules of `sources` are divided among.

    Nothing is made or removed unless all of them can be used.

    Args:
        finished: data sets that hold a part of these molecules already.

    Raises:
        MsdeError: one of the folders holds something else.
        DiskFull: there is not enough room.
    """
    left_over = {output: _left_over(output, sources) for output in outputs}
    for output, paths in left_over.items():
        make_output(output)
        if not os.access(output, os.W_OK):
            raise MsdeError(f"--output {output} is not writable")
        with _alone_in(output):
            for path in paths:
                path.unlink(missing_ok=True)
    needed = _size_of_shards(sources) - _size_of_shards(finished)
    free = shutil.disk_usage(outputs[0]).free
    if needed > free:
        names = " and ".join(map(str, outputs))
        raise DiskFull(
            f"disk full: the shards of {names} take {needed:,} bytes, {free:,} are free; free some "
            "space or choose another --output"
        )


@contextlib.contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Keep other processes from writing a data set to a folder meanwhile.

    Raises:
        InUse: another one does.
        MsdeError: another one has.
    """
    with locked(output / LOCK, f"another process writes to {output}; choose another --output"):
        if (output / manifest.NAME).exists():
            raise MsdeError(f"{output} holds a data set already; choose another --output")
        yield
        (output / LOCK).unlink(missing_ok=True)


def _left_over(output: Path, sources: Sequence[Path]) -> list[Path]:
    """Return the files of an interrupted run in a folder.

    Raises:
        MsdeError: it holds something else.
    """
    if any(output.resolve() == source.resolve() for source in sources):
        raise MsdeError(f"--output {output} is one of the inputs; choose another folder")
    if (output / manifest.NAME).exists():
        raise MsdeError(f"{output} holds a data set already; choose another --output")
    found = sorted(os.listdir(output)) if output.is_dir() else []
    others = [name for name in found if not _OURS.fullmatch(name)]
    if others:
        raise MsdeError(f"{output} is not empty ({others[0]} is there); choose another --output")
    return [output / name for name in found]


def _size_of_shards(roots: Sequence[Path]) -> int:
    """Return the size of all shards and their indices, in bytes."""
    return sum(path.stat().st_size for root in roots for path in root.glob("shard-*"))


def _narrowed(columns: MoleculeColumns) -> MoleculeColumns:
    """Return molecules with atom numbers as small as `columns_from_records` makes them.

    They may come from a block with larger molecules, where an atom number takes two bytes.
    """
    if columns.num_atoms.max() > 256:
        return columns
    narrow = {name: getattr(columns, name).astype("|u1") for name in ATOM_NUMBERS}
    return dataclasses.replace(columns, **narrow)


def _cut(parts: Iterable[MoleculeColumns], molecules: int) -> Iterator[list[MoleculeColumns]]:
    """Group molecules to shards of `molecules` each, or fewer where they are large."""
    shard: list[MoleculeColumns] = []
    count = size = 0
    for part in parts:
        first = 0
        while first < len(part):
            last = min(len(part), first + molecules - count)
            # A copy, since a view would keep the source's block in memory.
            taken = codec.decode(codec.encode(_narrowed(part.part(first, last))))
            shard.append(taken)
            count, size, first = count + len(taken), size + taken.nbytes, last
            if count == molecules or size >= SHARD_BYTES:
                yield shard
                shard, count, size = [], 0, 0
    if shard:
        yield shard


def write_data_set(
    output: Path,
    parts: Iterable[MoleculeColumns],
    facts: dict[str, Any],
    lists_of: Sequence[Path],
    shard_molecules: int = SHARD_MOLECULES,
    block_molecules: int | None = None,
) -> int:
    """Write molecules to a prepared folder, the manifest last; return how many there are.

    Args:
        facts: for the manifest.
        lists_of: data sets whose rejects and notes are copied.

    Raises:
        DataDamaged: one of these lists is not as it was written.
    """
    for root in lists_of:
        for problem in list_problems(root, read_manifest(root)):
            raise DataDamaged(f"{problem}; copy it again")
    shards = []
    origins: collections.Counter[str] = collections.Counter()
    with _alone_in(output):
        for number, pieces in enumerate(_cut(parts, shard_molecules)):
            columns = codec.concatenate(pieces)
            origins.update(count_origins(columns))
            shards.append(write_shard(output, number, columns, block_molecules))
        for name in LISTS:
            paths = [path for root in lists_of if (path := root / f"{name}.jsonl").exists()]
            join_files(paths, output / f"{name}.jsonl")
        write_manifest(output, shards, {**facts, "origin": dict(sorted(origins.items()))})
    return sum(shard["molecules"] for shard in shards)
