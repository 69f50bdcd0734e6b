import collections
import hashlib
import itertools
import shutil
import threading
import zlib

import numpy as np
import pytest
import torch

from fixtures.blocks import all_columns, write_shards
from fixtures.models import make_small
from fixtures.seeds import mostly_slow
from msde.data.mixture import Mixture
from msde.data.partition import Partition, SlotSize
from msde.data.shards import INDEX_DTYPE, ShardDataset
from msde.data.stream import ShardStream
from msde.errors import DataDamaged, MsdeError


@pytest.fixture(scope="module")
def data(shard_dir):
    return Mixture([ShardDataset(shard_dir)])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("msde.data.partition.WINDOW_BLOCKS", 3)
    monkeypatch.setattr("msde.data.partition.WINDOW_STEPS", 1)
    monkeypatch.setattr("msde.data.partition.GROUP_BLOCKS", 2)


def make_stream(data, rank=0, world_size=1, slots=4, per_slot=5, seed=0, fraction=0.0, **options):
    partition = Partition(
        data,
        seed=seed,
        slots_per_step=slots,
        slot_size=SlotSize(molecules=per_slot),
        validation_fraction=fraction,
    )
    return ShardStream(partition, rank=rank, world_size=world_size, **options)


def epochs(stream, count):
    """All slots of `count` epochs."""
    steps = iter(stream)
    seen = list(itertools.chain(*itertools.takewhile(lambda s: s[0].key.epoch < count, steps)))
    steps.close()
    return seen


def ids(slots):
    return sorted((batch.key.epoch, batch.slot, tuple(batch.uid.tolist())) for batch in slots)


def digest(batch, model):
    """A digest of the molecules of a slot with their noise and times."""
    noise = model.draw_noise(batch)
    digest = hashlib.sha256()
    for tensor in (batch.uid, batch.pos, *vars(noise).values()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("world_size", mostly_slow([1, 2, 3, 4, 8], [2, 3, 8]))
@pytest.mark.parametrize("workers", mostly_slow([0, 1, 3], [0, 3]))
def test_every_molecule_once_an_epoch_with_the_same_noise(data, world_size, workers, reference):
    options = {"slots": 24, "per_slot": 3, "world_size": world_size, "workers": workers}
    slots = [b for r in range(world_size) for b in epochs(make_stream(data, r, **options), 2)]
    everyone = collections.Counter(u for b in slots for u in b.uid.tolist())
    assert len(everyone) == len(data) and set(everyone.values()) == {2}
    model = make_small("base")
    assert {(b.key.epoch, b.slot): digest(b, model) for b in slots} == reference


@pytest.fixture(scope="module")
def reference(data):
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("WINDOW_BLOCKS", 3), ("WINDOW_STEPS", 1), ("GROUP_BLOCKS", 2)):
            patch.setattr(f"msde.data.partition.{name}", size)
        slots = epochs(make_stream(data, slots=24, per_slot=3), 2)
        model = make_small("base")
        return {(b.key.epoch, b.slot): digest(b, model) for b in slots}


@pytest.fixture(scope="module")
def two_folders(shard_dir, tmp_path_factory):
    """The molecules of `shard_dir` as two data sets, the second one of two shards."""
    columns, folder = all_columns(shard_dir), tmp_path_factory.mktemp("two")
    write_shards(folder / "a", columns.part(0, 70))
    write_shards(folder / "b", columns.part(70, 100), columns.part(100, 130))
    return folder / "a", folder / "b"


def mixture_of(folders, weights=()):
    return Mixture([ShardDataset(folder) for folder in folders], weights)


@pytest.mark.parametrize("bytes_at_once", [1, 2**26])  # one block, or all of a window
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_molecules_of_two_data_sets_come_as_often_as_their_weights_say(
    two_folders, bytes_at_once, world_size, workers, monkeypatch
):
    data = mixture_of(two_folders, [2.0, 1.0])
    expected = ids(epochs(make_stream(data, slots=4, per_slot=3), 2))
    monkeypatch.setattr("msde.data.mixture.BYTES_AT_ONCE", bytes_at_once)
    options = {"slots": 4, "per_slot": 3, "world_size": world_size, "workers": workers}
    batches = [b for r in range(world_size) for b in epochs(make_stream(data, r, **options), 2)]
    assert ids(batches) == expected
    whole, half = map(all_columns, two_folders)
    seen = collections.Counter(u for b in batches for u in b.uid.numpy().view("u8").tolist())
    assert {u: 2 for u in whole.uid.tolist()} | {u: 1 for u in half.uid.tolist()} == seen
    stored = {r.uid: r for c in (whole, half) for r in map(c.record, range(len(c)))}
    for batch in batches:
        for g, uid in enumerate(batch.uid.numpy().view("u8").tolist()):
            atoms = slice(int(batch.ptr[g]), int(batch.ptr[g + 1]))
            assert np.array_equal(batch.z[atoms], stored[uid].z)
            assert np.array_equal(batch.pos[atoms], stored[uid].pos[0])


def swap_indices(folder):
    """Exchange the indices of two shards of equal size."""
    first, second = folder / "shard-00000.idx", folder / "shard-00001.idx"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def stale_index(folder):
    """Write the index of the same molecules with other numbers of atoms."""
    path = folder / "shard-00000.idx"
    rows = np.fromfile(path, INDEX_DTYPE, 30)
    rows["num_atoms"] += 1
    crcs = np.array([zlib.crc32(rows[at : at + 16].tobytes()) for at in (0, 16)], "<u4")
    path.write_bytes(rows.tobytes() + crcs.tobytes())


@pytest.mark.parametrize("harm", [swap_indices, stale_index])
@pytest.mark.parametrize("resident", [False, True])
def test_no_molecule_is_trained_on_by_the_index_of_others(two_folders, tmp_path, resident, harm):
    folder = shutil.copytree(two_folders[1], tmp_path / "data")
    harm(folder)
    stream = make_stream(mixture_of([folder]), fraction=0.2)
    with pytest.raises(DataDamaged, match=r"shard-0000\d\.lmdb, block 0: its molecules are not"):
        if resident:
            stream.keep_on(torch.device("cpu"))
        next(iter(stream))


@pytest.mark.parametrize("stop", [1, 3, 7, 8, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_with_the_same_slots(data, stop, workers):
    whole = epochs(make_stream(data), 3)
    stream = make_stream(data, workers=workers)
    steps = iter(stream)
    for _ in range(stop):
        next(steps)
    state = stream.state_dict()  # what was prepared ahead does not count
    steps.close()
    for world_size in (1, 2):
        rest = []
        for rank in range(world_size):
            resumed = make_stream(data, rank, world_size, workers=2 - workers)
            resumed.load_state_dict(state)
            assert resumed.epochs_done == stream.epochs_done > 0
            rest += epochs(resumed, 3)
        assert ids(rest) == ids(whole[4 * stop :])


def test_saving_and_loading_a_position_does_not_move_it(data):
    stream = make_stream(data)
    assert stream.state_dict()["step"] == 0
    next(iter(stream))
    for _ in range(2):
        state = stream.state_dict()
        assert state["step"] == 1
        stream.load_state_dict(state)


@pytest.mark.parametrize(
    ("folders", "weights", "options"),
    [
        ("ab", [1.0, 0.5], {"seed": 1}),
        ("ab", [1.0, 0.5], {"per_slot": 6}),
        ("ab", [1.0, 0.5], {"slots": 2}),
        ("ab", [1.0, 0.5], {"fraction": 0.1}),
        ("ab", [1.0, 0.25], {}),
        ("ba", [1.0, 0.5], {}),
        ("a", [1.0], {}),
    ],
)
def test_a_position_is_refused_for_another_plan(two_folders, folders, weights, options):
    state = make_stream(mixture_of(two_folders, [1.0, 0.5])).state_dict()
    make_stream(mixture_of(two_folders, [2.0, 1.0])).load_state_dict(state)  # the same plan
    data = mixture_of([two_folders["ab".index(name)] for name in folders], weights)
    with pytest.raises(MsdeError, match="other data, another run.seed, .* or other slots"):
        make_stream(data, **options).load_state_dict(state)


def test_world_sizes_that_do_not_divide_the_slots_are_refused(data):
    with pytest.raises(MsdeError, match="multiple of 3"):
        make_stream(data, world_size=3)


def test_weights_make_the_mean_over_molecules(data):
    for step in itertools.islice(make_stream(data, slots=4, per_slot=7), 12):
        sizes = torch.tensor([batch.num_graphs for batch in step], dtype=torch.float64)
        weights = torch.tensor([batch.weight for batch in step], dtype=torch.float64)
        values = torch.rand(4, dtype=torch.float64)  # the slots' means
        assert torch.isclose((values * weights).mean(), (values * sizes).sum() / sizes.sum())


def test_batches_are_valid_and_hold_what_the_shards_hold(data):
    for step in itertools.islice(make_stream(data, masking_ratio=0.2, workers=1), 5):
        for batch in step:
            batch.validate()
    by_uid = {}
    for columns in data.sources[0].blocks():
        by_uid |= {record.uid: record for record in map(columns.record, range(len(columns)))}
    (batch, *_) = next(iter(make_stream(data)))
    for g, uid in enumerate(batch.uid.numpy().view("u8").tolist()):
        atoms = slice(int(batch.ptr[g]), int(batch.ptr[g + 1]))
        assert np.array_equal(batch.z[atoms], by_uid[uid].z)
        assert np.array_equal(batch.pos[atoms], by_uid[uid].pos[0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_resident_molecules_give_the_same_batches(data, several, padded, tmp_path, records):
    if several:  # conformers
        import dataclasses

        from msde.data.codec import columns_from_records
        from msde.data.shards import write_manifest, write_shard

        more = [
            dataclasses.replace(r, pos=np.concatenate([r.pos * (1 + k) for k in range(1 + n % 3)]))
            for n, r in enumerate(records)
        ]
        write_manifest(tmp_path, [write_shard(tmp_path, 0, columns_from_records(more))], {})
        data = Mixture([ShardDataset(tmp_path)])
    options = {"slots": 2, "per_slot": 3, "padded": padded}
    resident = make_stream(data, **options)
    resident.keep_on(torch.device("cpu"))
    pairs = [*zip(epochs(make_stream(data, **options), 2), epochs(resident, 2), strict=True)]
    assert any(kept.num_padding for _, kept in pairs) == padded
    for streamed, kept in pairs:
        if not padded:
            kept.validate()
        assert (streamed.slot, streamed.weight, streamed.key) == (kept.slot, kept.weight, kept.key)
        for name, tensor in streamed.tensors().items():
            assert torch.equal(tensor, getattr(kept, name)), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [False, True])
def test_a_gpu_gets_the_same_batches_beside_its_other_work(data, resident):
    device = torch.device("cuda")
    there = make_stream(data, workers=2)
    (there.keep_on if resident else there.send_to)(device)
    work, steps = torch.randn(4096, 4096, device=device), iter(there)
    arriving = itertools.chain.from_iterable(steps)
    for here, batch in zip(epochs(make_stream(data), 2), arriving, strict=False):
        work = (work @ work).sin()  # the GPU is behind by some steps
        for name, tensor in batch.tensors().items():
            assert tensor.is_cuda and torch.equal(getattr(here, name), (tensor + 0).cpu()), name
    steps.close()


def test_damage_reaches_the_training_thread_and_no_thread_is_left(data, monkeypatch):
    before = threading.active_count()

    def damaged(block):
        raise DataDamaged(f"block {block}")

    monkeypatch.setattr(data.sources[0], "read_block", damaged, raising=False)
    for workers in (0, 1, 3):
        with pytest.raises(DataDamaged, match="block"):
            next(iter(make_stream(data, workers=workers)))
    monkeypatch.undo()
    steps = iter(make_stream(data, workers=3))
    next(steps)
    steps.close()
    assert threading.active_count() == before


def test_packed_molecules_are_sent_to_the_device_and_expanded_there(data):
    (here, *_), there = next(iter(make_stream(data))), make_stream(data)
    there.send_to(torch.device("meta"))
    (batch, *_) = next(iter(there))
    for name, tensor in here.tensors().items():
        assert getattr(batch, name).is_meta and getattr(batch, name).shape == tensor.shape, name
