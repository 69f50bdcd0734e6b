import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import sys

import numpy as np
import pytest

from fixtures.blocks import all_columns, flip, read_all, write_shards
from msde.data import shards
from msde.data.codec import columns_from_records
from msde.data.shards import INDEX_DTYPE, ShardDataset
from msde.errors import DataDamaged, MsdeError


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_index_and_blocks_agree(shard_dir):
    dataset = ShardDataset(shard_dir)
    assert dataset.num_blocks == -(-len(dataset) // 16)
    seen = []
    for block in range(dataset.num_blocks):
        columns, rows = dataset.read_block(block), dataset.index(block)
        assert rows.dtype == INDEX_DTYPE
        assert np.array_equal(columns.uid, rows["uid"])
        assert np.array_equal(columns.num_atoms, rows["num_atoms"])
        assert dataset.first_molecule(block) == len(seen)
        seen += columns.uid.tolist()
    assert len(set(seen)) == len(seen) == len(dataset)


def test_molecules_are_found_by_number(shard_dir):
    dataset = ShardDataset(shard_dir)
    numbers = np.array([0, 15, 16, 33, len(dataset) - 1])
    block, place = dataset.locate(numbers)
    assert block.tolist()[:4] == [0, 0, 1, 2] and place.tolist()[:4] == [0, 15, 0, 1]
    uid = np.concatenate([dataset.read_block(b).uid for b in range(dataset.num_blocks)])
    for number, b, p in zip(numbers, block, place, strict=True):
        assert dataset.read_block(int(b)).uid[p] == uid[number]


def test_a_flipped_bit_in_the_index_is_found(copied):
    path = copied / "shard-00000.idx"
    rng = np.random.default_rng(0)
    intact = path.read_bytes()
    for at in rng.integers(0, len(intact), 50):
        flip(path, at, int(rng.integers(8)))
        with pytest.raises(DataDamaged, match=r"shard-00000\.idx, block \d+ is damaged"):
            read_all(copied)
        path.write_bytes(intact)


def test_readers_leave_no_files_behind(copied):
    before = set(os.listdir(copied))
    opened = len(shards._environments)
    ShardDataset(copied).read_block(0)
    assert len(shards._environments) == opened + 1  # no earlier test has opened this copy
    assert set(os.listdir(copied)) == before


def _first_uid(dataset, queue):
    inherited = len(shards._environments)
    queue.put((inherited, int(dataset.read_block(0).uid[0])))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_datasets_cross_process_boundaries(shard_dir, method):
    dataset = ShardDataset(shard_dir)
    first = int(dataset.read_block(0).uid[0])  # opened here before the other process starts
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_first_uid, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == (0, first)  # none of the parent's open files is used
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
        (lambda d: (d / "shard-00000.idx").unlink(), DataDamaged, "idx"),
        (lambda d: os.truncate(d / "shard-00000.idx", 100), DataDamaged, "idx"),
    ],
)
def test_unusable_folders_are_named(copied, damage, error, message):
    damage(copied)
    with pytest.raises(error, match=message):
        ShardDataset(copied)


def test_bytes_of_shards_follow_from_the_molecules(records, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shards.write_shard(tmp_path / folder, 0, columns_from_records(records), 3)
    for name in ("shard-00000.lmdb", "shard-00000.idx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_same_id_twice_is_an_error(records, tmp_path):
    entries = [shards.write_shard(tmp_path, n, columns_from_records(records)) for n in (0, 1)]
    with pytest.raises(MsdeError, match="10 molecules have the id of another one"):
        shards.write_manifest(tmp_path, entries, {})


def test_data_is_never_unpickled(shard_dir):
    found = []
    active = [True]
    sys.addaudithook(lambda event, _: event == "pickle.find_class" and active and found.append(1))
    read_all(shard_dir)
    active.clear()
    assert not found


@pytest.fixture(scope="module")
def many_shards(shard_dir, tmp_path_factory):
    """A data set of 40 shards."""
    columns = all_columns(shard_dir)
    parts = [columns.part(n, n + 2) for n in range(0, 80, 2)]
    return write_shards(tmp_path_factory.mktemp("many") / "data", *parts)


def _read_with_limit(folder, soft, hard, queue):
    """Read all blocks with room for so many more open files."""
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(1000) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[soft], free[hard]))
    try:
        read_all(folder)
        queue.put(None)
    except BaseException as error:
        queue.put((type(error), str(error)))


@pytest.mark.parametrize("hard", [100, 30])
def test_more_shards_than_files_may_be_open(many_shards, hard):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_read_with_limit, args=(many_shards, 20, hard, queue))
    process.start()
    process.join(60)
    found = queue.get()
    if hard == 100:  # the limit that the process may raise itself
        assert found is None
        return
    error, message = found
    assert error is MsdeError and "\n" not in message
    assert re.match(r"too many open files: \d\d shards are open, .*ulimit -Hn.*reshard", message)
