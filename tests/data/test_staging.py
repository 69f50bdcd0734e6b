import multiprocessing
import shutil

import fsspec
import numpy as np
import pytest

from msde.data.mixture import Mixture
from msde.data.shards import ShardDataset
from msde.errors import DataDamaged, MsdeError
from msde.training.plan import open_data


@pytest.fixture
def memory_url(shard_dir):
    """The data set in an object store, as far as fsspec has one in memory."""
    store = fsspec.filesystem("memory")
    store.put(str(shard_dir), "/bucket/nci", recursive=True)
    yield "memory://bucket/nci"
    store.rm("/bucket", recursive=True)


def assert_same_molecules(one, other):
    numbers = np.random.default_rng(0).permutation(len(one))
    assert np.array_equal(Mixture([one]).fetch(numbers).pos, Mixture([other]).fetch(numbers).pos)


def test_shards_are_copied_from_object_storage_when_needed(memory_url, shard_dir, tmp_path):
    staged = ShardDataset(memory_url, tmp_path)
    (copies,) = tmp_path.iterdir()
    assert not list(copies.glob("*.lmdb"))
    assert_same_molecules(staged, ShardDataset(shard_dir))
    names = {path.name for path in copies.iterdir() if not path.name.startswith(".")}
    assert names == {"shard-00000.lmdb"}
    staged.index(0)
    assert (copies / "shard-00000.idx").exists()
    fsspec.filesystem("memory").rm("/bucket/nci/shard-00000.lmdb")
    assert_same_molecules(ShardDataset(memory_url, tmp_path), ShardDataset(shard_dir))
    fsspec.filesystem("memory").pipe("/bucket/nci/shard-00000.lmdb", b"")


def test_a_copy_that_is_damaged_is_found(shard_dir, tmp_path):
    remote = shutil.copytree(shard_dir, tmp_path / "remote")
    path = remote / "shard-00000.lmdb"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataDamaged, match=r"stage/.*shard-00000\.lmdb is damaged"):
        ShardDataset(remote, tmp_path / "stage").read_block(0)
    path.write_bytes(bytes(data[:-10]))
    with pytest.raises(DataDamaged, match="the manifest says"):
        ShardDataset(remote, tmp_path / "other").read_block(0)


def _read(root, stage, queue):
    queue.put(int(ShardDataset(root, stage).read_block(0).uid[0]))


def test_processes_of_a_machine_share_the_copies(shard_dir, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_read, args=(shard_dir, tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert len({queue.get(timeout=60) for _ in processes}) == 1
    for process in processes:
        process.join()
    assert len(list(tmp_path.rglob("*.lmdb"))) == 1


@pytest.mark.parametrize(
    ("url", "stage", "message"),
    [
        ("memory://bucket/nci", None, "data.stage_dir="),
        ("memory://bucket/none", "stage", "no finished data set"),
        ("nosuch://bucket", "stage", "cannot be opened"),
    ],
)
def test_urls_that_cannot_be_used_get_one_line(tmp_path, url, stage, message):
    with pytest.raises(MsdeError, match=message) as raised:
        open_data([url], str(tmp_path / stage) if stage else None)
    assert "\n" not in str(raised.value)


def test_folders_and_weights(shard_dir, tmp_path):
    shutil.copytree(shard_dir, tmp_path / "a=b")
    assert open_data([str(tmp_path / "a=b")]).weights == [1.0]
    assert open_data([f"{shard_dir}=0.5"]).weights == [1.0]
    with pytest.raises(MsdeError, match="given twice"):
        open_data([f"{shard_dir}=0.5", f"{shard_dir}=1"])
