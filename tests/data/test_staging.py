import errno
import io
import multiprocessing
import shutil
import time

import fsspec
import numpy as np
import pytest

from msde.data.mixture import Mixture
from msde.data.shards import ShardDataset
from msde.data.staging import StagedFolder
from msde.errors import DataDamaged, DiskFull, MsdeError
from msde.training.plan import open_data


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    monkeypatch.setattr("msde.data.staging.PAUSES", (0.0, 0.0, 0.0))


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
    staged.read_block(0)
    names = {path.name for path in copies.iterdir() if not path.name.startswith(".")}
    assert names == {"shard-00000.lmdb"}
    staged.index(0)
    assert (copies / "shard-00000.idx").exists()
    assert_same_molecules(staged, ShardDataset(shard_dir))
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


class Network:
    """The memory of fsspec, seen through a network that fails for some of the attempts."""

    def __init__(self, monkeypatch):
        self.failures = []  # of the next attempts: an error, or a function of the bytes
        store = type(fsspec.filesystem("memory"))
        open_file = store.open

        def opened(filesystem, path, mode="rb", **options):
            failure = self.failures.pop(0) if self.failures and path.endswith(".lmdb") else None
            if isinstance(failure, Exception):
                raise failure
            file = open_file(filesystem, path, mode, **options)
            return file if failure is None else io.BytesIO(failure(file.read()))

        monkeypatch.setattr(store, "open", opened)


@pytest.fixture
def network(monkeypatch):
    return Network(monkeypatch)


def damaged(data):
    return data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]


def test_a_file_that_a_network_damages_is_copied_again(memory_url, shard_dir, tmp_path, network):
    network.failures = [damaged, lambda data: data[:-10], ConnectionResetError("reset by peer")]
    assert_same_molecules(ShardDataset(memory_url, tmp_path), ShardDataset(shard_dir))
    assert not network.failures


def test_no_damaged_copy_is_kept(memory_url, shard_dir, tmp_path, network):
    network.failures = [damaged] * 4
    with pytest.raises(DataDamaged, match=r"shard-00000\.lmdb is damaged \(SHA-256 differs"):
        ShardDataset(memory_url, tmp_path).read_block(0)
    assert_same_molecules(ShardDataset(memory_url, tmp_path), ShardDataset(shard_dir))


@pytest.mark.parametrize(
    ("failures", "error", "message"),
    [
        ([ConnectionResetError(errno.ECONNRESET, "reset")] * 4, MsdeError, "after 4 attempts: .*;"),
        ([RuntimeError("two\nlines")] * 4, MsdeError, "after 4 attempts: two lines; run the same"),
        ([OSError(errno.ENOSPC, "full")], DiskFull, "disk full: .* needs"),
        ([FileNotFoundError("gone")], DataDamaged, "is missing"),
    ],
)
def test_files_that_cannot_be_copied_get_one_line(
    memory_url, tmp_path, network, failures, error, message
):
    network.failures = list(failures)
    with pytest.raises(error, match=message) as raised:
        ShardDataset(memory_url, tmp_path).read_block(0)
    assert "\n" not in str(raised.value) and not network.failures


def test_a_folder_that_cannot_be_written_gets_one_line(memory_url, tmp_path):
    staged = ShardDataset(memory_url, tmp_path)
    (copies,) = tmp_path.iterdir()
    (copies / ".shard-00000.lmdb.lock").mkdir()
    with pytest.raises(MsdeError, match="cannot be written: Is a directory; .* data.stage_dir"):
        staged.read_block(0)


def _read(root, stage, barrier, queue):
    staged = ShardDataset(root, stage)
    barrier.wait(60)
    queue.put(int(staged.read_block(0).uid[0]))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_of_a_machine_share_the_copies(shard_dir, tmp_path, monkeypatch, locks):
    context = multiprocessing.get_context("fork")
    queue, barrier, copied = context.Queue(), context.Barrier(3), context.Value("i")
    copy = StagedFolder._copy

    def counted(*arguments):
        with copied:
            copied.value += 1
        time.sleep(0.2)  # in which the others would start to copy, too
        copy(*arguments)

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(StagedFolder, "_copy", counted)
    if not locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
    arguments = (shard_dir, tmp_path, barrier, queue)
    processes = [context.Process(target=_read, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    uid = int(ShardDataset(shard_dir).read_block(0).uid[0])
    assert {queue.get(timeout=60) for _ in processes} == {uid}
    for process in processes:
        process.join()
    assert copied.value == (1 if locks else 3)
    (copies,) = tmp_path.iterdir()
    assert {p.name for p in copies.iterdir()} == {"shard-00000.lmdb", ".shard-00000.lmdb.lock"}


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
