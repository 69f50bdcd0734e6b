import collections

import numpy as np
import pytest
import torch

from msde.errors import MsdeError
from msde.philox import Key
from msde.shards import ShardDataset
from msde.stream import ShardStream, epoch_order, plan_epoch, split_by_uid


@pytest.fixture(scope="module")
def dataset(shard_dir):
    return ShardDataset(shard_dir)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("msde.stream.WINDOW_BLOCKS", 3)


def make_stream(dataset, rank=0, world_size=1, slots=4, per_slot=5, seed=0):
    return ShardStream(
        dataset,
        np.arange(len(dataset)),
        slots_per_step=slots,
        molecules_per_slot=per_slot,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def epochs(stream, count):
    """The slots of `count` epochs as (epoch, slot number, ids)."""
    seen = []
    for step in stream:
        if step[0].key.epoch == count:
            return seen
        seen += [(batch.key.epoch, batch.slot, tuple(batch.uid.tolist())) for batch in step]
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_molecule_once_an_epoch_at_any_world_size(dataset, world_size):
    counts = [collections.Counter() for _ in range(2)]
    for rank in range(world_size):
        for epoch, _, uids in epochs(make_stream(dataset, rank, world_size), 2):
            counts[epoch].update(uids)
    signed = set(dataset.uid.astype("<u8").view("<i8").tolist())
    for count in counts:
        assert set(count) == signed and set(count.values()) == {1}


def test_slots_do_not_depend_on_the_world_size(dataset):
    alone = sorted(epochs(make_stream(dataset), 2))
    shared = [epochs(make_stream(dataset, rank, 4), 2) for rank in range(4)]
    assert sorted(slot for part in shared for slot in part) == alone


def test_order_depends_on_seed_and_epoch_only(dataset):
    members = np.arange(len(dataset))
    order = epoch_order(dataset, members, Key(0, 0))
    assert sorted(order) == list(members)
    assert np.array_equal(order, epoch_order(dataset, members, Key(0, 0)))
    assert not np.array_equal(order, epoch_order(dataset, members, Key(0, 1)))
    assert not np.array_equal(order, epoch_order(dataset, members, Key(1, 0)))
    # A window's molecules come from its three blocks only, and are mixed among them.
    blocks = dataset.block[order]
    first_window = blocks[: 3 * 16]
    assert len(set(first_window)) <= 4
    assert len(set(first_window[:16])) > 1


@pytest.mark.parametrize("stop", [1, 3, 7, 8, 11])
def test_resume_goes_on_with_the_same_slots(dataset, stop):
    whole = epochs(make_stream(dataset), 3)
    stream = make_stream(dataset)
    steps = iter(stream)
    for _ in range(stop):
        next(steps)
    state = stream.state_dict()
    for world_size in (1, 2):
        rest = []
        for rank in range(world_size):
            resumed = make_stream(dataset, rank, world_size)
            resumed.load_state_dict(state)
            rest += epochs(resumed, 3)
        assert sorted(rest) == sorted(whole[4 * stop :])


def test_saving_and_loading_a_position_does_not_move_it(dataset):
    stream = make_stream(dataset)
    assert stream.state_dict()["step_in_epoch"] == 0
    next(iter(stream))
    for _ in range(2):
        state = stream.state_dict()
        assert state["step_in_epoch"] == 1
        stream.load_state_dict(state)


def test_a_position_is_refused_for_another_plan(dataset):
    state = make_stream(dataset).state_dict()
    for other in (make_stream(dataset, seed=1), make_stream(dataset, per_slot=6)):
        with pytest.raises(MsdeError, match="other data, another run.seed or other slots"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("molecules", "slots", "per_slot"),
    [(40, 4, 5), (41, 4, 5), (47, 4, 5), (48, 4, 5), (59, 4, 5), (8, 4, 5), (13, 4, 50), (9, 1, 2)],
)
def test_plans_drop_nothing_and_leave_no_slot_almost_empty(molecules, slots, per_slot):
    plan = plan_epoch(np.arange(molecules), slots, per_slot)
    parts = [plan.slot(step, slot) for step in range(plan.num_steps) for slot in range(slots)]
    assert np.array_equal(np.concatenate(parts), np.arange(molecules))
    assert min(map(len, parts)) >= 2
    assert max(map(len, parts)) <= per_slot + 2
    for step in range(plan.num_steps):
        sizes = [len(plan.slot(step, slot)) for slot in range(slots)]
        assert max(sizes) - min(sizes) <= 1
        assert plan.molecules_in_step(step) == sum(sizes)


def test_too_few_molecules_are_refused():
    with pytest.raises(MsdeError, match="use at most 3 slots"):
        plan_epoch(np.arange(7), 4, 5)


def test_world_sizes_that_do_not_divide_the_slots_are_refused(dataset):
    with pytest.raises(MsdeError, match="multiple of 3"):
        make_stream(dataset, world_size=3)


def test_weights_make_the_mean_over_molecules(dataset):
    stream = make_stream(dataset, slots=4, per_slot=7)
    for step in stream:
        if step[0].key.epoch:
            break
        sizes = torch.tensor([batch.num_graphs for batch in step], dtype=torch.float64)
        weights = torch.tensor([batch.weight for batch in step], dtype=torch.float64)
        values = torch.rand(4, dtype=torch.float64)  # the slots' means
        assert torch.isclose((values * weights).mean(), (values * sizes).sum() / sizes.sum())


def test_split_is_by_molecule_and_close_to_the_fraction():
    uid = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    training, validation = split_by_uid(uid, 0.1)
    assert len(training) + len(validation) == len(uid)
    assert 0.09 < len(validation) / len(uid) < 0.11
    shuffled = np.random.default_rng(1).permutation(len(uid))
    again = split_by_uid(uid[shuffled], 0.1)[1]
    assert set(uid[shuffled][again]) == set(uid[validation])
    assert len(split_by_uid(uid, 0.0)[1]) == 0
