"""LMDB shards on disk: writing, reading and the manifest that makes a folder a data set.

    DIR/manifest.json     written last; a folder without it is not a data set
    DIR/shard-00000.lmdb  key: block number, big-endian u4; value: a block (msde.data.codec)
    DIR/shard-00000.idx   (uid, num_atoms) of each molecule, then a CRC32 of each block's rows
    DIR/rejects.jsonl     molecules that could not be converted, with reasons
    DIR/notes.jsonl       remarks on molecules that were converted

Every block of a shard but its last holds `block_molecules` molecules, so the place of a molecule
follows from its number. Shards never change once written: each process opens them read-only,
without locks and at first use, which is safe with fork and on network file systems. LMDB does not
check its files, so the SHA-256 of a shard is checked before it is opened, once on each machine.
In `msde` only this module imports lmdb.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from msde.chem.record import MoleculeRecord, Origin
from msde.data import codec
from msde.data.codec import MoleculeColumns
from msde.data.integrity import PAGE, check_shard, check_size
from msde.data.manifest import FORMAT, NAME, digest_of, read_manifest
from msde.data.staging import Folder, StagedFolder
from msde.errors import DataDamaged, DiskFull, MsdeError
from msde.files import disk_full_as_error, file_sha256, sealed, write_atomically, write_text

LISTS = ("rejects.jsonl", "notes.jsonl")  # of molecules, beside the shards
BLOCK_MOLECULES = 1024
INDEX_DTYPE = np.dtype([("uid", "<u8"), ("num_atoms", "<u4")])
# liblmdb 1.0 writes a format that older tools cannot read; py-lmdb 3 offers both.
_ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}


def _block_key(block: int) -> bytes:
    return block.to_bytes(4, "big")


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.lmdb"


def write_shard(
    root: Path, number: int, columns: MoleculeColumns, block_molecules: int | None = None
) -> dict[str, Any]:
    """Write molecules, in order, as one shard and its index; return its entry in the manifest.

    Both files appear complete or not at all, and their bytes depend on the molecules alone.

    Args:
        block_molecules: molecules of a block; None for BLOCK_MOLECULES.

    Raises:
        DiskFull: there was no room; no file is left behind.
    """
    path = root / shard_name(number)
    block_molecules = block_molecules or BLOCK_MOLECULES
    cuts = [*range(0, len(columns), block_molecules), len(columns)]
    parts = [columns.part(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    blocks = [codec.encode(part) for part in parts]
    size = sum(len(block) + 2 * PAGE for block in blocks) + 16 * PAGE

    def write_lmdb(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        # The map is address space, not disk; with writemap a full disk would end in a signal.
        env = lmdb.open(
            str(temporary), map_size=2 * size, subdir=False, lock=False, sync=False, **_ENGINE
        )
        try:
            for block, value in enumerate(blocks):
                with env.begin(write=True) as transaction:
                    transaction.put(_block_key(block), value, append=True)
            env.sync(True)
        except lmdb.Error as error:  # LMDB reports a full disk as an input/output error
            raise DiskFull(
                f"disk full or broken: {path} needs {size:,} bytes ({error}); free some and run "
                "the same command again, nothing that was finished is lost"
            ) from error
        finally:
            env.close()

    rows = [_index_rows(part).tobytes() for part in parts]
    crcs = np.array([zlib.crc32(r) for r in rows], "<u4")
    index = b"".join(rows) + crcs.tobytes()
    index_path = path.with_suffix(".idx")
    with disk_full_as_error(path, size):
        write_atomically(index_path, lambda temporary: temporary.write_bytes(index))
        write_atomically(path, write_lmdb)
    path.chmod(0o444)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "molecules": len(columns),
        "block_molecules": block_molecules,
        "atoms": int(columns.num_atoms.sum()),
        "max_atoms": int(columns.num_atoms.max()),
        "no_geometry": int((columns.origin & Origin.NO_GEOMETRY != 0).sum()),
        "conformers": int(columns.num_conformers.sum()),
        "forces": int((columns.num_forces > 0).sum()),  # molecules that have them
    }


def _index_rows(columns: MoleculeColumns) -> np.ndarray:
    rows = np.zeros(len(columns), INDEX_DTYPE)
    rows["uid"], rows["num_atoms"] = columns.uid, columns.num_atoms
    return rows


def write_manifest(root: Path, shards: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the manifest, which makes a folder of shards a data set.

    It holds the hashes of LISTS, which must be there already, and a digest of its own.

    Args:
        shards: the entries that `write_shard` returned, in order.
        facts: further entries: `labels` (a list of name and unit), `source`, ...

    Raises:
        MsdeError: two molecules have the same id.
    """
    _check_unique(root, shards)
    manifest = {
        "format": FORMAT,
        "block_version": codec.VERSION,
        "endianness": "little",
        "molecules": sum(s["molecules"] for s in shards),
        "atoms": sum(s["atoms"] for s in shards),
        "max_atoms": max((s["max_atoms"] for s in shards), default=0),
        "no_geometry": sum(s["no_geometry"] for s in shards),
        "digest": digest_of(shards),
        "labels": [],
        "forces_unit": None,
        **facts,
        "lists": {name: file_sha256(root / name) for name in LISTS if (root / name).exists()},
        "shards": list(shards),
    }
    text = sealed(manifest)
    path = root / NAME
    with disk_full_as_error(path, len(text)):
        write_text(path, text)


def repeated_ids(uid: np.ndarray) -> str | None:
    """Return a message if some of the ids `uid` are repeated, or None."""
    uid = np.sort(uid)
    again = uid[1:][uid[1:] == uid[:-1]]
    if not len(again):
        return None
    return f"{len(again)} molecules have the id of another one, {int(again[0]):016x} for example"


def _check_unique(root: Path, shards: Sequence[dict[str, Any]]) -> None:
    indices = [read_index_file(root / shard["file"], shard)["uid"] for shard in shards]
    repeated = repeated_ids(np.concatenate([np.zeros(0, "<u8"), *indices]))
    if repeated:
        raise MsdeError(f"{repeated}; is one input in there twice?")


def read_index_file(shard_path: Path, shard: dict[str, Any]) -> np.ndarray:
    """Return the rows of the index file of a shard, without checking them."""
    return np.fromfile(shard_path.with_suffix(".idx"), INDEX_DTYPE, shard["molecules"])


def _raise_file_limit() -> None:
    """Raise this process's limit of open files as far as it may; often it is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _too_many_files_as_error() -> Iterator[None]:
    """Turn the system's error of too many open files into one that says what to do.

    Raises:
        MsdeError: this process may open no more files.
    """
    try:
        yield
    except (OSError, lmdb.Error) as error:  # LMDB has no type of its own for it
        if os.strerror(errno.EMFILE) not in str(error):
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise MsdeError(
            f"too many open files: {len(_environments)} shards are open, and a process may open "
            f"{limit} files; raise the hard limit (ulimit -Hn), or make larger shards: "
            "'python -m msde.data_tools.reshard DIR --output DIR --shard-molecules N'"
        ) from error


class _Environments:
    """Read transactions on shards, opened at first use and shared by the threads of this process.

    LMDB does not open a file twice in a process, and an open file does not survive a fork. A file
    stays open, because molecules are views of its memory.
    """

    def __init__(self) -> None:
        self._open: dict[tuple, tuple[lmdb.Environment, lmdb.Transaction]] = {}
        self._checked: set[tuple] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: Path, shard: dict[str, Any], key: bytes) -> memoryview | bytes | None:
        """Return the value of a key; its memory stays mapped until the process ends."""
        facts = path.stat()
        # The path may become another file, and the file be damaged and mended again.
        file = (path.resolve(), facts.st_ino, shard["sha256"])
        if (*file, facts.st_mtime_ns) not in self._checked:
            check_shard(path, shard)
            self._checked.add((*file, facts.st_mtime_ns))
        with self._lock:
            if not self._open:
                _raise_file_limit()
            if file not in self._open:
                env = lmdb.open(
                    str(path), readonly=True, lock=False, subdir=False, readahead=False,
                    max_readers=1, **_ENGINE,
                )  # fmt: skip
                self._open[file] = env, env.begin(buffers=True)
            return self._open[file][1].get(key)

    def forget(self) -> None:
        """Close the files inherited by a fork; without locks that affects this process only."""
        for env, _ in self._open.values():
            env.close()
        self.__init__()  # type: ignore[misc]


_environments = _Environments()
os.register_at_fork(after_in_child=_environments.forget)


class ShardDataset:
    """A data set on disk: blocks of molecules and rows of its index, read on demand.

    The numbers of blocks run through all shards, those of molecules through all blocks.

    Raises:
        MsdeError: the folder is missing, empty, or of a format this release does not read.
        DataDamaged: a shard or its index is missing or does not have the recorded size.
    """

    def __init__(
        self,
        root: str | Path,
        stage_dir: Path | None = None,
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """Read the manifest and check every file's size.

        Args:
            root: a folder or, with `stage_dir`, a URL that fsspec understands.
            stage_dir: local folder that files are copied to before they are read.
            manifest: replaces that of the folder, with only some of its shards.
        """
        if "://" in str(root) and stage_dir is None:
            raise MsdeError(f"{root} is not local; name a local folder for copies: data.stage_dir=")
        self.root = root
        self.manifest = read_manifest(root) if manifest is None else manifest
        shards = self.manifest["shards"]
        self._per_block = np.array([s["block_molecules"] for s in shards])
        molecules = np.array([s["molecules"] for s in shards])
        blocks = -(-molecules // self._per_block)
        self._first_block = np.append(0, np.cumsum(blocks))  # (num_shards + 1,)
        self._first_molecule = np.append(0, np.cumsum(molecules))  # (num_shards + 1,)
        self._index_bytes = molecules * INDEX_DTYPE.itemsize + 4 * blocks  # (num_shards,)
        self._folder: Folder | StagedFolder
        if stage_dir is None:
            self._folder = Folder(Path(root))
            for entry, size in zip(shards, self._index_bytes.tolist(), strict=True):
                path = Path(root) / entry["file"]
                check_size(path, entry["bytes"])
                check_size(path.with_suffix(".idx"), size)
        else:
            copies = f"{Path(str(root)).name}-{self.digest[:16]}"
            self._folder = StagedFolder(str(root), stage_dir / copies)

    def __len__(self) -> int:
        return int(self._first_molecule[-1])

    @property
    def num_blocks(self) -> int:
        """Number of blocks in all shards."""
        return int(self._first_block[-1])

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' hashes: the identity of the data set."""
        return self.manifest["digest"]

    def first_molecule(self, block: int) -> int:
        """Return the number of a block's first molecule."""
        shard, local = self._place(block)
        return int(self._first_molecule[shard] + local * self._per_block[shard])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each molecule and its place there, by the molecule's number."""
        shard = np.searchsorted(self._first_molecule, numbers, side="right") - 1
        block, place = np.divmod(numbers - self._first_molecule[shard], self._per_block[shard])
        return self._first_block[shard] + block, place

    def _place(self, block: int) -> tuple[int, int]:
        """Return the shard of a block and the block's number in it."""
        shard = int(np.searchsorted(self._first_block, block, side="right")) - 1
        return shard, block - int(self._first_block[shard])

    def index(self, block: int) -> np.ndarray:
        """Read a block's rows of the index, (molecules in the block,) of INDEX_DTYPE.

        Raises:
            DataDamaged: the rows have changed since they were written.
        """
        shard, local = self._place(block)
        entry = self.manifest["shards"][shard]
        name = Path(entry["file"]).with_suffix(".idx").name
        path = self._folder.path(name, int(self._index_bytes[shard]), entry["index_sha256"])
        first, per_block = local * entry["block_molecules"], entry["block_molecules"]
        count = min(per_block, entry["molecules"] - first)
        with _too_many_files_as_error(), open(path, "rb") as file:
            file.seek(first * INDEX_DTYPE.itemsize)
            rows = file.read(count * INDEX_DTYPE.itemsize)
            file.seek(entry["molecules"] * INDEX_DTYPE.itemsize + 4 * local)
            crc = file.read(4)
        if len(crc) < 4 or zlib.crc32(rows) != int.from_bytes(crc, "little"):
            raise DataDamaged(
                f"{path}, block {local} is damaged (CRC32 differs); copy or convert it again"
            )
        return np.frombuffer(rows, INDEX_DTYPE)

    def read_block(self, block: int) -> MoleculeColumns:
        """Read and check one block; its arrays are views of the shard's memory.

        Raises:
            DataDamaged: the shard or the block is missing or damaged.
        """
        shard, local = self._place(block)
        entry = self.manifest["shards"][shard]
        path = self._folder.path(entry["file"], entry["bytes"], entry["sha256"])
        try:
            with _too_many_files_as_error():
                value = _environments.get(path, entry, _block_key(local))
            if value is None:
                raise codec.BlockError("block is missing")
            return codec.decode(value)
        except (codec.BlockError, lmdb.Error) as error:
            raise DataDamaged(f"{path}, block {local}: {error}") from error

    def check_index(self, block: int, columns: MoleculeColumns) -> None:
        """Check that a block's rows of the index are those of its molecules.

        A training run plans by the index, and reads molecules by their place: with the index of
        another shard it would train on molecules that are held out.

        Raises:
            DataDamaged: they are not, or the rows have changed since they were written.
        """
        if not np.array_equal(self.index(block), _index_rows(columns)):
            shard, local = self._place(block)
            entry = self.manifest["shards"][shard]
            raise DataDamaged(
                f"{self._folder.root / entry['file']}, block {local}: its molecules are not those "
                "of the .idx file beside it; copy or convert both files again"
            )

    def blocks(self) -> Iterator[MoleculeColumns]:
        """Read all blocks in order."""
        return map(self.read_block, range(self.num_blocks))

    def records(self) -> Iterator[MoleculeRecord]:
        """Read all molecules in order, each as a record."""
        for columns in self.blocks():
            yield from map(columns.record, range(len(columns)))
