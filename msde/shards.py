"""LMDB shards on disk: a writer, a reader and the manifest that makes a folder a data set.

    DIR/manifest.json       written last; a folder without it is not a data set
    DIR/shard-00000.lmdb    key: block number, big-endian u4; value: a block (msde.codec)
    DIR/shard-00000.idx.npy one row a molecule: uid, sizes, block and place in the block
    DIR/rejects.jsonl       what could not be converted, with reasons
    DIR/notes.jsonl         what is unusual about molecules that were

Shards never change once written: readers open them read-only without locks, lazily, once a
process, so that neither fork nor a network file system can hurt them. This is the only module
that imports lmdb.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np

from msde import codec
from msde.codec import MoleculeColumns
from msde.errors import DataDamaged, MsdeError
from msde.files import file_sha256, write_atomically
from msde.molecule import MoleculeRecord

FORMAT = "msde-shards/1"
BLOCK_MOLECULES = 1024
SHARD_BYTES = 128 << 20
INDEX_DTYPE = np.dtype(
    [
        ("uid", "<u8"),
        ("num_atoms", "<u4"),
        ("num_bonds", "<u4"),
        ("num_extended", "<u4"),
        ("block", "<u4"),
        ("place", "<u4"),
    ]
)
# liblmdb 1.0 writes a format that older tools cannot read; py-lmdb 3 offers both.
_ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}


def _block_key(block: int) -> bytes:
    return block.to_bytes(4, "big")


class ShardWriter:
    """Write records, in the order given, as a new data set; leaving it normally completes it.

    Args:
        root: folder of the data set, made if need be; it must not hold a data set already.
        source: facts about the origin of the molecules, kept in the manifest.
    """

    def __init__(self, root: Path, source: dict[str, Any]) -> None:
        """Check that the folder is free and start the first shard."""
        if (root / "manifest.json").exists():
            raise MsdeError(f"{root} holds a data set already; choose another --output")
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MsdeError(f"folder {root} cannot be made: {error.strerror}") from error
        self.root = root
        self.source = source
        self.counts: dict[str, Any] = {}  # what the manifest says of the conversion
        self._pending: list[MoleculeRecord] = []
        self._uids: set[int] = set()
        self._shards: list[dict[str, Any]] = []
        self._open_shard()

    def _open_shard(self) -> None:
        self._path = self.root / f"shard-{len(self._shards):05d}.lmdb"
        self._temporary = self._path.with_name(f".{self._path.name}.tmp")
        self._temporary.unlink(missing_ok=True)
        self._index: list[np.ndarray] = []
        self._bytes = 0
        # The map is address space, not disk; writemap would turn a full disk into a signal.
        self._env = lmdb.open(
            str(self._temporary), map_size=8 * SHARD_BYTES, subdir=False, lock=False, **_ENGINE
        )

    def add(self, record: MoleculeRecord) -> None:
        """Append one molecule; a uid that was seen before is an error."""
        if record.uid in self._uids:
            raise MsdeError(
                f"molecule {record.name!r} has the id {record.uid:016x} of another one; "
                "was one input file given twice?"
            )
        self._uids.add(record.uid)
        self._pending.append(record)
        if len(self._pending) == BLOCK_MOLECULES:
            self._write_block()

    def _write_block(self) -> None:
        columns = codec.columns_from_records(self._pending)
        rows = np.zeros(len(columns), INDEX_DTYPE)
        for name in ("uid", "num_atoms", "num_bonds", "num_extended"):
            rows[name] = getattr(columns, name)
        rows["block"] = len(self._index)
        rows["place"] = np.arange(len(columns))
        block = codec.encode(columns)
        with self._env.begin(write=True) as transaction:
            transaction.put(_block_key(len(self._index)), block, append=True)
        self._index.append(rows)
        self._bytes += len(block)
        self._pending = []
        if self._bytes >= SHARD_BYTES:
            self._close_shard()
            self._open_shard()

    def _close_shard(self) -> None:
        self._env.sync(True)
        self._env.close()
        index = np.concatenate(self._index)
        index_path = self._path.with_suffix(".idx.npy")

        def write_index(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, index, allow_pickle=False)

        write_atomically(index_path, write_index)
        os.chmod(self._temporary, 0o444)
        os.replace(self._temporary, self._path)
        self._shards.append(
            {
                "file": self._path.name,
                "bytes": self._path.stat().st_size,
                "sha256": file_sha256(self._path),
                "index_sha256": file_sha256(index_path),
                "molecules": len(index),
                "blocks": len(self._index),
                "atoms": int(index["num_atoms"].sum()),
                "max_atoms": int(index["num_atoms"].max()),
            }
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            if self._pending:
                self._write_block()
            if self._index:
                self._close_shard()
            else:
                self._discard_shard()
            self._write_manifest()
        else:
            self._discard_shard()
            for shard in self._shards:  # without a manifest they are of no use
                path = self.root / shard["file"]
                path.unlink()
                path.with_suffix(".idx.npy").unlink()

    def _discard_shard(self) -> None:
        self._env.close()
        self._temporary.unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        digest = hashlib.sha256("".join(s["sha256"] for s in self._shards).encode()).hexdigest()
        manifest = {
            "format": FORMAT,
            "block_version": codec.VERSION,
            "endianness": "little",
            "molecules": sum(s["molecules"] for s in self._shards),
            "atoms": sum(s["atoms"] for s in self._shards),
            "max_atoms": max((s["max_atoms"] for s in self._shards), default=0),
            "digest": digest,
            "source": self.source,
            **self.counts,
            "shards": self._shards,
        }
        text = json.dumps(manifest, indent=1) + "\n"
        write_atomically(self.root / "manifest.json", lambda path: path.write_text(text))


_environments: dict[tuple, tuple[lmdb.Environment, lmdb.Transaction]] = {}


def _transaction(path: Path) -> lmdb.Transaction:
    """Return this process's one read transaction on a shard, opened at first use.

    LMDB refuses to open a file twice in a process, and does not survive a fork.
    """
    facts = path.stat()
    key = (path.resolve(), facts.st_ino, facts.st_mtime_ns)  # another file may take the name
    if key not in _environments:
        env = lmdb.open(
            str(path),
            readonly=True,
            lock=False,
            subdir=False,
            readahead=False,
            max_readers=1,
            **_ENGINE,
        )
        _environments[key] = env, env.begin(buffers=True)
    return _environments[key][1]


def _forget_environments() -> None:
    """Close what was inherited; without locks that touches nothing but this process's memory."""
    for env, _ in _environments.values():
        env.close()
    _environments.clear()


os.register_at_fork(after_in_child=_forget_environments)


class ShardDataset:
    """A data set on disk: the index of its molecules in memory, blocks read on demand.

    Raises:
        MsdeError: the folder is missing, empty, or of a format this release does not read.
        DataDamaged: a shard or its index is missing or does not have the recorded size.
    """

    def __init__(self, root: str | Path) -> None:
        """Read the manifest and the index, and check every shard's size."""
        self.root = Path(root)
        self.manifest = self._read_manifest()
        indices = [self._read_index(shard) for shard in self.manifest["shards"]]
        index = np.concatenate(indices)
        self.uid = index["uid"]  # (num_molecules,) u8
        self.num_atoms = index["num_atoms"].astype(np.int64)  # (num_molecules,)
        self.place = index["place"].astype(np.int64)  # (num_molecules,)
        # Blocks are numbered through all shards, molecules through all blocks.
        blocks = [int(shard["blocks"]) for shard in self.manifest["shards"]]
        first_block = np.cumsum([0, *blocks])
        self.block = np.concatenate(
            [
                rows["block"].astype(np.int64) + first
                for rows, first in zip(indices, first_block, strict=False)
            ]
        )  # (num_molecules,)
        self._first_block = first_block

    def __len__(self) -> int:
        return len(self.uid)

    @property
    def num_blocks(self) -> int:
        """Number of blocks in all shards."""
        return int(self._first_block[-1])

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' hashes: the identity of the data set."""
        return self.manifest["digest"]

    def _read_manifest(self) -> dict[str, Any]:
        path = self.root / "manifest.json"
        if not self.root.is_dir():
            raise MsdeError(f"data folder {self.root} does not exist; make one with {_CONVERT}")
        if not path.exists():
            raise MsdeError(
                f"{self.root} holds no finished data set (no manifest.json); make one with "
                f"{_CONVERT}"
            )
        try:
            manifest = json.loads(path.read_text())
            found = manifest["format"]
            missing = {"molecules", "digest", "shards"} - manifest.keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataDamaged(f"{path} is not a shard manifest ({error!r})") from error
        if found == FORMAT and missing:
            raise DataDamaged(f"{path} lacks {', '.join(sorted(missing))}")
        if found != FORMAT:
            raise MsdeError(
                f"{path}: format {found!r} is not the format {FORMAT!r} of this release; "
                "convert the data again or use the release that wrote it"
            )
        if not manifest["molecules"]:
            raise MsdeError(f"{self.root} holds no molecules; see its rejects.jsonl")
        return manifest

    def _read_index(self, shard: dict[str, Any]) -> np.ndarray:
        path = self.root / shard["file"]
        size = path.stat().st_size if path.exists() else None
        # A mapped file that is shorter than the map kills the process on access: check first.
        if size != shard["bytes"]:
            raise DataDamaged(
                f"{path} has {'no file' if size is None else f'{size} bytes'}, the manifest says "
                f"{shard['bytes']} bytes; copy or convert it again"
            )
        index_path = path.with_suffix(".idx.npy")
        if not index_path.exists() or file_sha256(index_path) != shard["index_sha256"]:
            raise DataDamaged(f"{index_path} is missing or damaged (SHA-256 differs)")
        return np.load(index_path, allow_pickle=False)

    def read_block(self, block: int) -> MoleculeColumns:
        """Read and check one block, numbered through all shards.

        Raises:
            DataDamaged: the block is missing or damaged.
        """
        shard = int(np.searchsorted(self._first_block, block, side="right")) - 1
        path = self.root / self.manifest["shards"][shard]["file"]
        local = block - int(self._first_block[shard])
        try:
            value = _transaction(path).get(_block_key(local))
            if value is None:
                raise codec.BlockError("block is missing")
            return codec.decode(bytes(value))  # a copy outlives the environment
        except (codec.BlockError, lmdb.Error) as error:
            raise DataDamaged(f"{path}, block {local}: {error}") from error


_CONVERT = "'python -m msde.data_tools.convert --format smiles INPUT --output DIR'"
