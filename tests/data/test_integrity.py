import dataclasses
import errno
import io

import numpy as np
import pytest

from fixtures.blocks import flip, read_all
from msde.data import shards
from msde.data.codec import columns_from_records
from msde.data.integrity import check_shard
from msde.data.manifest import read_manifest
from msde.errors import DataDamaged


def test_any_flipped_bit_of_a_shard_is_found_and_named(copied):
    """One bit at 200 places: never wrong molecules, and never a signal that ends the process."""
    path = copied / "shard-00000.lmdb"
    intact = path.read_bytes()
    starts = block_starts(intact)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(intact), 200).tolist():
        flip(path, at, int(rng.integers(8)))
        with pytest.raises(DataDamaged, match=r"shard-00000\.lmdb is damaged") as error:
            read_all(copied)
        for block, (first, last) in enumerate(starts):
            if first <= at < last:
                assert f"block {block}: " in str(error.value), (at, first)
                break
        else:
            assert "outside its blocks" in str(error.value), at
        path.write_bytes(intact)


def fail(error):
    raise error


class FullDisk(io.FileIO):
    """A file on a full disk."""

    def __init__(self, path, *_, **__):
        super().__init__(path, "a+")

    def write(self, _):
        fail(OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("fcntl.flock", lambda *_: fail(OSError(errno.ENOLCK, "No locks available"))),
        ("tempfile.gettempdir", lambda: fail(FileNotFoundError(errno.ENOENT, "No usable"))),
        ("open", FullDisk),
    ],
)
def test_shards_are_checked_where_no_note_can_be_kept(copied, monkeypatch, name, replacement):
    (entry,) = read_manifest(copied)["shards"]
    path = copied / "shard-00000.lmdb"
    monkeypatch.setattr(f"msde.data.integrity.{name}", replacement, raising=False)
    check_shard(path, entry)
    flip(path, 20_000)
    with pytest.raises(DataDamaged, match=r"shard-00000\.lmdb is damaged"):
        check_shard(path, entry)


def block_starts(data):
    found, at = [], data.find(b"MSDB")
    while at >= 0:
        length = int.from_bytes(data[at + 16 : at + 24], "little")
        found.append((at, at + length))
        at = data.find(b"MSDB", at + length)
    return found


def test_swapped_and_stale_shards_are_caught_before_they_are_mapped(records, tmp_path):
    others = [dataclasses.replace(record, uid=number) for number, record in enumerate(records)]
    entries = []
    for number, part in enumerate((records, others)):
        entries.append(shards.write_shard(tmp_path, number, columns_from_records(part)))
    shards.write_manifest(tmp_path, entries, {})
    first, second = tmp_path / "shard-00000.lmdb", tmp_path / "shard-00001.lmdb"
    assert first.stat().st_size == second.stat().st_size  # so that sizes do not tell
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    with pytest.raises(DataDamaged, match=r"shard-0000\d\.lmdb is damaged \(SHA-256 differs"):
        read_all(tmp_path)
