"""The finished parts of a conversion, kept beside its shards until the data set is complete.

    DIR/.lock                            locked by the process that converts
    DIR/parts/job.json                   the inputs and options of the conversion
    DIR/parts/shard-00000.json           the range of raw molecules in a shard, counts, hashes
    DIR/parts/shard-00000.rejects.jsonl  and .notes.jsonl

A part's own file is written after all files that it names. So a stopped conversion resumes after
the parts whose files are there and intact.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from msde.chem.record import Origin
from msde.data import codec, manifest
from msde.data.codec import MoleculeColumns
from msde.data.shards import shard_name, write_shard
from msde.errors import MsdeError
from msde.files import (
    LOCK,
    disk_full_as_error,
    file_sha256,
    locked,
    sealed,
    unsealed,
    write_atomically,
    write_text,
)

from ..parsing.types import RawMolecule
from .chunks import CHUNK, OUTSIDE_VOCABULARY, Converted
from .progress import kind_of

SHARD_MOLECULES = 131_072
SHARD_BYTES = 128 << 20
LISTS = ("rejects", "notes")  # each becomes a file of lines

Item = TypeVar("Item")


@dataclass
class Part:
    """An unfinished shard: molecules `first` to `last` - 1 of the input."""

    number: int
    first: int
    last: int
    columns: list[MoleculeColumns] = field(default_factory=list)
    bytes: int = 0
    lines: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in LISTS})
    reasons: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: {name: collections.Counter() for name in LISTS}
    )

    def add(self, raws: list[RawMolecule], result: Converted) -> None:
        """Add the next chunk."""
        self.last += len(raws)
        if result.columns is not None:
            self.columns.append(result.columns)
            self.bytes += result.columns.nbytes
        for name in LISTS:
            for place, reason in getattr(result, name):
                self.lines[name].append(_line(raws[place], reason))
                self.reasons[name][kind_of(reason)] += 1

    @property
    def is_full(self) -> bool:
        """Whether the shard should be written; rejects count, since their lines take memory."""
        return self.last - self.first >= SHARD_MOLECULES or self.bytes >= SHARD_BYTES


def _line(raw: RawMolecule, reason: str) -> str:
    """Return a line with the place of a molecule and the reason."""
    text = raw.payload[:200] if isinstance(raw.payload, str) else ""
    where = {"source": raw.source, "line": raw.line, "name": raw.name}
    return json.dumps({**where, "reason": reason, "text": text}) + "\n"


class Parts:
    """The parts of one conversion: the finished ones, and the one being written."""

    def __init__(self, root: Path, job: dict[str, Any]) -> None:
        """Resume the job in `root`, or begin it; `open_parts` keeps other processes out.

        Raises:
            MsdeError: the folder holds a data set, or the unfinished conversion of something else.
        """
        self.root = root
        self.folder = root / "parts"
        job = json.loads(json.dumps(job))  # as it will be when it is read
        self.is_complete = False  # the manifest is written; only the parts remain to be removed
        self.finished: dict[int, dict[str, Any]] = {}
        self._refuse_others(job)
        if self.is_complete:
            return
        with _writing_to(root):
            self.folder.mkdir(exist_ok=True)
            if not self._job_path.exists():
                self._write(self._job_path, json.dumps(job, indent=1) + "\n", durable=True)
        for folder in (self.root, self.folder):
            for left_over in folder.glob(".*.tmp"):
                left_over.unlink()
        self._find_finished()

    @property
    def _job_path(self) -> Path:
        return self.folder / "job.json"

    def _refuse_others(self, job: dict[str, Any]) -> None:
        _refuse_finished(self.root)  # again: it may have been finished while this process waited
        has_manifest = (self.root / manifest.NAME).exists()
        if not self._job_path.exists():
            self.is_complete = has_manifest
            return
        try:
            there = json.loads(self._job_path.read_text())
        except ValueError as error:
            raise MsdeError(
                f"{self._job_path} is damaged ({error}); delete {self.root} and convert again"
            ) from error
        if there != job:
            raise MsdeError(
                f"{self.root} holds the unfinished conversion of something else "
                f"({_difference(there, job)}); run that command again, or delete the folder"
            )
        self.is_complete = has_manifest

    def _find_finished(self) -> None:
        for path in sorted(self.folder.glob("shard-*.json")):
            with contextlib.suppress(ValueError):  # a crash of the machine may have damaged it
                part = unsealed(path.read_text())
                if self._is_intact(part):
                    self.finished[part["number"]] = part
                    continue
            path.unlink()

    def _is_intact(self, part: dict[str, Any]) -> bool:
        hashes = {self._list_path(part["number"], name): part[name] for name in LISTS}
        if part["shard"]:
            shard = self.root / part["shard"]["file"]
            hashes[shard] = part["shard"]["sha256"]
            hashes[shard.with_suffix(".idx")] = part["shard"]["index_sha256"]
        return all(path.exists() and file_sha256(path) == sha for path, sha in hashes.items())

    def _list_path(self, number: int, name: str) -> Path:
        return self.folder / Path(shard_name(number)).with_suffix(f".{name}.jsonl")

    def unfinished(self, raws: Iterable[Item]) -> Iterator[tuple[int, list[Item]]]:
        """Cut the input into chunks, without those of finished parts."""
        done = [range(part["first"], part["last"]) for part in self.finished.values()]
        chunk: list[Item] = []
        number = 0
        for number, raw in enumerate(raws, start=1):
            chunk.append(raw)
            if len(chunk) == CHUNK:
                if not any(number - 1 in held for held in done):
                    yield number - CHUNK, chunk
                chunk = []
        if chunk and not any(number - 1 in held for held in done):
            yield number - len(chunk), chunk

    def write(
        self, results: Iterable[tuple[int, list[RawMolecule], Converted]]
    ) -> Iterator[tuple[int, list[str]]]:
        """Write parts from converted chunks; yields each chunk's size and reasons of rejects."""
        part = None
        for first, raws, result in results:
            if part is not None and first != part.last:
                self._finish(part)
                part = None
            if part is None:
                number = sum(p["last"] <= first for p in self.finished.values())
                part = Part(number, first, first)
            part.add(raws, result)
            if part.is_full:
                self._finish(part)
                part = None
            yield len(raws), [reason for _, reason in result.rejects]
        if part is not None:
            self._finish(part)

    def _finish(self, part: Part) -> None:
        texts = {name: "".join(lines) for name, lines in part.lines.items()}
        for name, text in texts.items():
            self._write(self._list_path(part.number, name), text)
        columns = codec.concatenate(part.columns) if part.columns else None
        shard = None if columns is None else write_shard(self.root, part.number, columns)
        facts = {
            "number": part.number,
            "first": part.first,
            "last": part.last,
            "shard": shard,
            "counts": {
                "read": part.last - part.first,
                "converted": 0 if columns is None else len(columns),
                "rejected": len(part.lines["rejects"]),
                "outside_vocabulary": part.reasons["notes"][OUTSIDE_VOCABULARY],
            },
            **{f"{name}_by_reason": dict(part.reasons[name]) for name in LISTS},
            "origin": {} if columns is None else count_origins(columns),
            **{name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        }
        path = self.folder / Path(shard_name(part.number)).with_suffix(".json")
        self._write(path, sealed(facts))
        self.finished[part.number] = facts

    def _write(self, path: Path, text: str, durable: bool = False) -> None:
        # No sync: hashes show which parts a crash of the machine damaged; those are written again.
        with disk_full_as_error(path, len(text)):
            write_text(path, text, durable)

    def shards(self) -> list[dict[str, Any]]:
        """Return the manifest's entries of all shards, in order."""
        parts = [self.finished[number] for number in sorted(self.finished)]
        return [part["shard"] for part in parts if part["shard"]]

    def total(self, what: str) -> dict[str, int]:
        """Return the sums over all parts of one of their tables of counts."""
        sums: collections.Counter[str] = collections.Counter()
        for part in self.finished.values():
            sums.update(part[what])
        return dict(sorted(sums.items()))

    def write_lists(self) -> None:
        """Join the parts' rejects and notes to `rejects.jsonl` and `notes.jsonl`."""
        for name in LISTS:
            paths = [self._list_path(number, name) for number in sorted(self.finished)]
            join_files(paths, self.root / f"{name}.jsonl")

    def remove(self) -> None:
        """Remove the parts' folder, the job's file last, so that a removal can be resumed."""
        for path in self.folder.iterdir():
            if path != self._job_path:
                path.unlink()
        self._job_path.unlink(missing_ok=True)
        (self.root / LOCK).unlink(missing_ok=True)
        self.folder.rmdir()


def join_files(paths: list[Path], target: Path) -> None:
    """Write files one after another to `target`."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, file)

    with disk_full_as_error(target, sum(path.stat().st_size for path in paths)):
        write_atomically(target, write)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the first fact in which two jobs differ."""
    for key in [*here, *there]:
        if there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there, {here.get(key)!r} here"
    return "jobs differ"


def count_origins(columns: MoleculeColumns) -> dict[str, int]:
    """Count the molecules with each flag: bonds, conformers or geometry not from the source."""
    return {flag.name.lower(): int((columns.origin & flag != 0).sum()) for flag in Origin if flag}


@contextlib.contextmanager
def open_parts(root: Path, job: dict[str, Any]) -> Iterator[Parts]:
    """Open the parts of a job, alone.

    Raises:
        MsdeError: as `Parts`; another process converts to the folder, or it cannot be written.
        DiskFull: there is no room for a file.
    """
    _refuse_finished(root)
    with _writing_to(root):
        root.mkdir(parents=True, exist_ok=True)
    # Before any file is written: two processes would write it under one temporary name.
    with locked(root / LOCK, f"another process is converting to {root}"):
        yield Parts(root, job)


def _refuse_finished(root: Path) -> None:
    if (root / manifest.NAME).exists() and not (root / "parts").is_dir():
        raise MsdeError(f"{root} holds a data set already; choose another --output")


@contextlib.contextmanager
def _writing_to(root: Path) -> Iterator[None]:
    """Turn the system's errors into those of one line."""
    try:
        with disk_full_as_error(root, 1 << 16):
            yield
    except OSError as error:
        raise MsdeError(f"{root} cannot be written: {error}") from error
