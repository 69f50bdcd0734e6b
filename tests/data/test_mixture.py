import collections
import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch

from fixtures.blocks import Indexed, all_columns, write_shards
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.data.masking import drop_hydrogens, mask_columns
from msde.data.mixture import Mixture
from msde.data.partition import Partition, SlotSize
from msde.data.shards import ShardDataset
from msde.data.stream import ShardStream
from msde.errors import MsdeError
from msde.philox import Key


def test_weights_mix_data_sets():
    large, small = Indexed(np.full(1600, 5)), Indexed(np.full(800, 5), digest="other")
    data = Mixture([large, small], [0.5, 2.0])
    assert data.weights == [0.25, 1.0]
    seen = collections.Counter()
    for epoch in range(8):
        blocks = data.blocks(epoch)
        assert len(set(blocks.tolist())) == len(blocks)
        assert (blocks >= 100).sum() == 50  # all of the second
        seen.update(blocks.tolist())
    assert set(seen[b] for b in range(100)) == {2}  # a quarter of the epochs, each block
    assert 10 < (data.blocks(0) < 100).sum() < 40


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0, 0.0], "must be positive"), ([1.0, 1.0], "given twice")]
)
def test_weights_that_are_not_positive_and_repeated_data_sets_are_errors(weights, message):
    with pytest.raises(MsdeError, match=message):
        Mixture([Indexed(np.full(16, 5)), Indexed(np.full(16, 5))], weights)


@pytest.fixture(scope="module")
def with_conformers(shard_dir, tmp_path_factory):
    """Data sets of the same molecules: with one conformer each, and with 20 to 22."""
    columns, folder = all_columns(shard_dir), tmp_path_factory.mktemp("conformers")
    more = []
    for number, record in enumerate(map(columns.record, range(len(columns)))):
        scales = 1 + np.arange(20 + number % 3, dtype="f4")
        more.append(dataclasses.replace(record, pos=record.pos * scales[:, None, None]))
    write_shards(folder / "one", columns)
    write_shards(folder / "many", columns_from_records(more))
    return [Mixture([ShardDataset(folder / name)]) for name in ("one", "many")]


@pytest.mark.parametrize("bytes_at_once", [1, 2**26])
@pytest.mark.parametrize(("masking", "hydrogens"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.5)])
def test_a_conformer_is_chosen_as_a_batch_would(
    with_conformers, masking, hydrogens, bytes_at_once, monkeypatch
):
    monkeypatch.setattr("msde.data.mixture.BYTES_AT_ONCE", bytes_at_once)
    _, data = with_conformers
    numbers, key = np.random.default_rng(0).permutation(len(data))[:100], Key(3, 1)
    chosen, whole = data.fetch(numbers, key), data.fetch(numbers)
    assert (chosen.num_conformers == 1).all() and (whole.num_conformers >= 20).all()
    batches = []
    for columns in (chosen, whole):
        columns = mask_columns(drop_hydrogens(columns, hydrogens, key), masking, key)
        batches.append(MoleculeBatch.from_columns(columns, key))
    for name, tensor in batches[0].tensors().items():
        assert torch.equal(tensor, getattr(batches[1], name)), name


def peak(function, *arguments):
    """The most bytes that were allocated at a time."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def first_step(data):
    partition = Partition(data, seed=0, slots_per_step=1, slot_size=SlotSize(molecules=50))
    next(iter(ShardStream(partition)))


def test_training_takes_no_more_memory_with_many_conformers(with_conformers):
    one, many = with_conformers
    first_step(one)  # which imports what is needed
    assert peak(first_step, many) < 1.5 * peak(first_step, one)


def test_a_few_molecules_take_less_memory_than_all_of_their_blocks(with_conformers, monkeypatch):
    _, data = with_conformers
    few = np.arange(0, len(data), 16)  # one of each block, with all conformers
    together = peak(data.fetch, few)
    monkeypatch.setattr("msde.data.mixture.BYTES_AT_ONCE", 2**16)
    assert peak(data.fetch, few) < 0.5 * together
