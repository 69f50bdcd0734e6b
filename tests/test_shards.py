import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest

from msde.errors import DataDamaged, MsdeError
from msde.shards import ShardDataset


@pytest.fixture
def copied(shard_dir, tmp_path):
    return shutil.copytree(shard_dir, tmp_path / "data")


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_index_and_blocks_agree(shard_dir):
    dataset = ShardDataset(shard_dir)
    assert dataset.num_blocks == -(-len(dataset) // 16)
    for block in range(dataset.num_blocks):
        own = np.flatnonzero(dataset.block == block)
        columns = dataset.read_block(block)
        assert np.array_equal(columns.uid, dataset.uid[own])
        assert np.array_equal(columns.num_atoms, dataset.num_atoms[own])
        assert np.array_equal(dataset.place[own], np.arange(len(own)))
    assert len(np.unique(dataset.uid)) == len(dataset)


def test_a_flipped_bit_in_the_index_is_found(copied):
    path = copied / "shard-00000.idx.npy"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataDamaged, match="idx.npy is missing or damaged"):
        ShardDataset(copied)


def test_readers_leave_no_files_behind(shard_dir):
    before = set(os.listdir(shard_dir))
    ShardDataset(shard_dir).read_block(0)
    assert set(os.listdir(shard_dir)) == before


def _first_uid(dataset, queue):
    queue.put(int(dataset.read_block(0).uid[0]))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_datasets_cross_process_boundaries(shard_dir, method):
    dataset = ShardDataset(shard_dir)
    first = int(dataset.read_block(0).uid[0])  # opened here before the other process starts
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_first_uid, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == first
    process.join()
    assert int(pickle.loads(pickle.dumps(dataset)).read_block(0).uid[0]) == first


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: shutil.rmtree(d), MsdeError, "does not exist"),
        (lambda d: (d / "manifest.json").unlink(), MsdeError, "no finished data set"),
        (lambda d: edit_manifest(d, format="msde-shards/9"), MsdeError, "msde-shards/9"),
        (lambda d: edit_manifest(d, molecules=0), MsdeError, "no molecules"),
        (lambda d: (d / "manifest.json").write_text("{"), DataDamaged, "not a shard manifest"),
        (lambda d: (d / "shard-00000.lmdb").unlink(), DataDamaged, "no file"),
        (lambda d: os.truncate(d / "shard-00000.lmdb", 8192), DataDamaged, "8192 bytes"),
        (lambda d: os.truncate(d / "shard-00000.idx.npy", 100), DataDamaged, "idx.npy"),
    ],
)
def test_unusable_folders_are_named(copied, damage, error, message):
    (copied / "shard-00000.lmdb").chmod(0o644)
    damage(copied)
    with pytest.raises(error, match=message):
        ShardDataset(copied)


def test_a_flipped_byte_is_found_when_its_block_is_read(copied):
    path = copied / "shard-00000.lmdb"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"MSDB") + 3000
    data[at] ^= 1
    path.write_bytes(bytes(data))
    dataset = ShardDataset(copied)
    with pytest.raises(DataDamaged, match=r"shard-00000\.lmdb, block \d+: block is damaged"):
        for block in range(dataset.num_blocks):
            dataset.read_block(block)


def test_data_is_never_unpickled(shard_dir):
    import sys

    found = []
    active = [True]
    sys.addaudithook(lambda event, _: event == "pickle.find_class" and active and found.append(1))
    dataset = ShardDataset(shard_dir)
    for block in range(dataset.num_blocks):
        dataset.read_block(block)
    active.clear()
    assert not found
