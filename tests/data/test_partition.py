import collections
import itertools

import numpy as np
import pytest

from fixtures.blocks import Indexed
from msde.data.mixture import Mixture
from msde.data.partition import Partition, SlotSize, held_out, held_out_molecules
from msde.data.shards import ShardDataset
from msde.errors import MsdeError


def indexed(count, seed=0):
    return Mixture([Indexed(np.random.default_rng(seed).integers(1, 40, count))])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("msde.data.partition.WINDOW_BLOCKS", 6)
    monkeypatch.setattr("msde.data.partition.WINDOW_STEPS", 2)
    monkeypatch.setattr("msde.data.partition.GROUP_BLOCKS", 3)


def make(data, slots=4, molecules=5, atoms=None, seed=0, fraction=0.0):
    size = SlotSize(None if atoms else molecules, atoms)
    return Partition(
        data, seed=seed, slots_per_step=slots, slot_size=size, validation_fraction=fraction
    )


def epoch_slots(partition, epoch=0):
    """The molecules of each slot of an epoch: windows of steps of lanes."""
    for number in range(partition.num_windows(epoch)):
        window = partition.window(epoch, number)
        slots = window.slots(range(partition.slots_per_step))
        cut = np.split(slots.numbers, slots.ptr[1:-1])
        yield (
            window,
            [cut[i : i + window.slots_per_step] for i in range(0, len(cut), window.slots_per_step)],
        )


SIZES = [
    (40, 4, 5),
    (41, 4, 5),
    (59, 4, 5),
    (8, 4, 5),
    (13, 4, 50),
    (9, 1, 2),
    (1000, 6, 3),
    (777, 1, 64),
]


@pytest.mark.parametrize(("count", "slots", "per_slot"), SIZES)
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_molecule_is_in_one_slot_and_no_slot_is_almost_empty(count, slots, per_slot, epoch):
    partition = make(indexed(count), slots, per_slot)
    seen = collections.Counter()
    for window, steps in epoch_slots(partition, epoch):
        assert len(steps) == window.num_steps
        sizes = [len(slot) for step in steps for slot in step]
        assert min(sizes) >= 2 and max(sizes) <= max(per_slot, 3)
        assert max(sizes) - min(sizes) <= 2  # groups differ by one, their slots by one more
        assert [sum(map(len, step)) for step in steps] == window.molecules_in_step.tolist()
        for slot in itertools.chain(*steps):
            seen.update(slot.tolist())
    assert len(seen) == count and set(seen.values()) == {1}


@pytest.mark.parametrize("per_slot", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_no_slot_is_overfull_but_those_for_two_or_three_molecules(per_slot, slots):
    largest = 0
    for count in range(2 * slots, 200):
        for _, steps in epoch_slots(make(indexed(count), slots, per_slot)):
            largest = max(largest, *map(len, itertools.chain(*steps)))
    assert largest <= (per_slot if per_slot >= 4 else 4)


def test_slots_of_a_window_differ_in_atoms_by_less_than_the_largest_molecule():
    data = indexed(3000)
    num_atoms = data.sources[0].num_atoms
    for window, steps in epoch_slots(make(data, slots=4, molecules=20)):
        largest = int(window.num_atoms.max())
        for number in range(window.num_groups):
            lanes = slice(number * window.lanes_per_group, (number + 1) * window.lanes_per_group)
            atoms = [num_atoms[slot].sum() for step in steps for slot in step[lanes]]
            assert max(atoms) - min(atoms) <= largest


def test_slots_keep_to_a_budget_of_atoms_and_use_most_of_it(monkeypatch):
    monkeypatch.setattr("msde.data.partition.WINDOW_STEPS", 16)
    data = indexed(5000)
    num_atoms = data.sources[0].num_atoms
    filled = []
    for _, steps in epoch_slots(make(data, slots=2, atoms=800)):
        filled += [num_atoms[slot].sum() for step in steps for slot in step]
    assert sum(filled) == num_atoms.sum()
    assert max(filled) <= 800 and np.mean(filled) > 0.85 * 800


def test_ranks_share_the_slots_of_one_rank():
    partition = make(indexed(2000), slots=8, molecules=4)
    window = partition.window(1, 1)
    assert window.num_groups > 1
    whole = window.slots(range(8))
    cut = np.split(whole.numbers, whole.ptr[1:-1])
    for share in (1, 2, 4):
        for first in range(0, 8, share):
            own = window.slots(range(first, first + share))
            mine = [
                cut[s * 8 + lane]
                for s in range(window.num_steps)
                for lane in range(first, first + share)
            ]
            assert np.array_equal(own.numbers, np.concatenate(mine))


def test_a_rank_draws_from_the_blocks_of_its_own_group_only():
    partition = make(indexed(2000), slots=8, molecules=4)
    window = partition.window(0, 0)
    blocks = [set((window.slots(range(n, n + 1)).numbers // 16).tolist()) for n in range(8)]
    assert len(set().union(*blocks)) == 6
    assert all(len(b) <= 4 for b in blocks)  # three, and one that two groups share
    assert len(blocks[0] & blocks[7]) <= 1


def test_windows_are_planned_without_those_before_them():
    data = indexed(2000)
    late = make(data).window(5, 3)
    partition = make(data)
    for number in range(4):
        window = partition.window(5, number)
    assert np.array_equal(late.slots(range(4)).numbers, window.slots(range(4)).numbers)


def test_order_depends_on_seed_and_epoch():
    data = indexed(500)
    orders = [
        np.concatenate(
            [
                np.concatenate(step)
                for _, steps in epoch_slots(make(data, seed=seed), epoch)
                for step in steps
            ]
        )
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[3])


def test_molecules_are_mixed_across_blocks_and_sizes():
    data = indexed(960)
    num_atoms = data.sources[0].num_atoms
    (window, steps), *_ = epoch_slots(make(data, slots=1, molecules=32))
    for (slot,) in steps:
        assert len(set((slot // 16).tolist())) > 3
        # Inside a slot sizes come in random order: neighbours are antithetic pairs.
        order = np.corrcoef(np.arange(len(slot)), num_atoms[slot])[0, 1]
        assert abs(order) < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 7, "slots": 4}, "use at most 3 slots"),
        ({"count": 100, "atoms": 100}, "use at least 195"),
    ],
)
def test_data_that_do_not_fit_are_refused(arguments, message):
    data = indexed(arguments.pop("count"))
    data.sources[0].num_atoms[0] = 39
    with pytest.raises(MsdeError, match=message):
        make(data, **arguments).window(0, 0)


def test_the_steps_of_an_epoch_are_estimated_well():
    for count in (300, 2000, 5000):
        partition = make(indexed(count), molecules=7)
        steps = sum(window.num_steps for window, _ in epoch_slots(partition))
        assert abs(partition.steps_per_epoch() - steps) <= max(1, 0.1 * steps)


def test_held_out_molecules_are_never_trained_on(shard_dir):
    data = Mixture([ShardDataset(shard_dir)])
    validation = set(held_out_molecules(data, 0.2, 1000).tolist())
    assert 10 < len(validation) < 60
    partition = make(data, fraction=0.2)
    trained = {
        int(m)
        for _, steps in epoch_slots(partition)
        for slot in itertools.chain(*steps)
        for m in slot
    }
    assert not trained & validation and len(trained | validation) == len(data)
    some = held_out_molecules(data, 0.2, 10)
    assert len(some) == 10 and set(some.tolist()) <= validation


def test_the_split_is_by_molecule_and_close_to_the_fraction():
    uid = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    assert 0.09 < held_out(uid, 0.1).mean() < 0.11
    assert not held_out(uid, 0.0).any()
    assert not (held_out(uid, 0.1) & ~held_out(uid, 0.2)).any()
