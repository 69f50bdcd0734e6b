import dataclasses

import numpy as np
import pytest

from msde.chem.record import MoleculeRecord, Origin
from msde.data import codec


def assert_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape, field.name
            assert a.tobytes() == b.tobytes(), field.name
        else:
            assert a == b, field.name


def test_round_trip_of_records(records):
    block = codec.encode(codec.columns_from_records(records))
    decoded = codec.decode(block)
    for place, record in enumerate(records):
        assert_same(decoded.record(place), record)
    assert codec.encode(decoded) == block


def random_record(rng, num_labels=2):
    """A record of a random graph: nothing about it is chemistry."""
    n = int(rng.integers(1, 400))  # more than 256 atoms need two bytes
    conformers, bonds = int(rng.integers(1, 4)), int(rng.integers(0, 2 * n))
    degree = rng.integers(0, min(n, 9), n).astype("<u2")
    forces = conformers if rng.random() < 0.5 else 0
    return MoleculeRecord(
        uid=int(rng.integers(0, 2**64, dtype=np.uint64)),
        name="é" * int(rng.integers(0, 5)),
        z=rng.integers(0, 255, n).astype("u1"),
        x=rng.integers(0, 255, (n, 9)).astype("u1"),
        cip=rng.integers(0, 3, n).astype("u1"),
        bond_index=rng.integers(0, n, (bonds, 2)).astype("<u2"),
        bond_attr=rng.integers(0, 6, (bonds, 3)).astype("u1"),
        extended_source=rng.integers(0, n, degree.sum()).astype("<u2"),
        extended_degree=degree,
        pos=rng.normal(size=(conformers, n, 3)).astype("<f4"),
        forces=rng.normal(size=(forces, n, 3)).astype("<f4"),
        y=np.where(rng.random(num_labels) < 0.3, np.nan, rng.normal(size=num_labels)),
        origin=Origin(int(rng.integers(0, 8))),
    )


@pytest.mark.parametrize("num_labels", [0, 1, 5])
def test_round_trip_of_random_graphs(num_labels):
    rng = np.random.default_rng(num_labels)
    records = [random_record(rng, num_labels) for _ in range(20)]
    decoded = codec.decode(codec.encode(codec.columns_from_records(records)))
    for place, record in enumerate(records):
        assert_same(decoded.record(place), record)


def test_parts_and_columns_without_names_labels_and_forces():
    rng = np.random.default_rng(7)
    records = [random_record(rng) for _ in range(9)]
    part = codec.columns_from_records(records).part(2, 6)
    for place in range(4):
        assert_same(part.record(place), records[2 + place])
    bare = part.bare()
    assert_same(
        codec.decode(codec.encode(bare)).take(np.array([3, 0])), bare.take(np.array([3, 0]))
    )
    assert bare.y.shape == (4, 0) and not len(bare.forces) and not len(bare.name)
    assert np.array_equal(bare.record(1).pos, records[3].pos)


def test_take_and_concatenate(records):
    columns = codec.columns_from_records(records)
    places = np.array([3, 0, 7, 3])
    taken = columns.take(places)
    for at, place in enumerate(places):
        assert_same(taken.record(at), records[place])
    both = codec.concatenate([columns.take(np.array([1])), columns.take(np.array([2, 0]))])
    assert_same(both.record(2), records[0])


def test_every_flipped_bit_is_noticed(records):
    block = codec.encode(codec.columns_from_records(records))
    rng = np.random.default_rng(0)
    for offset in [*range(60), *rng.integers(0, len(block), 200)]:
        damaged = bytearray(block)
        damaged[offset] ^= 1 << int(rng.integers(8))
        with pytest.raises(codec.BlockError):
            codec.decode(bytes(damaged))


@pytest.mark.parametrize("length", [0, 3, 20, 200, -1])
def test_truncated_blocks_are_noticed(records, length):
    block = codec.encode(codec.columns_from_records(records))
    with pytest.raises(codec.BlockError):
        codec.decode(block[:length])


def test_other_versions_are_refused(records, monkeypatch):
    monkeypatch.setattr(codec, "VERSION", 9)
    block = codec.encode(codec.columns_from_records(records))
    monkeypatch.undo()
    with pytest.raises(codec.BlockError, match="version 9"):
        codec.decode(block)


def test_unknown_columns_are_ignored(records, monkeypatch):
    columns = codec.columns_from_records(records)
    monkeypatch.setitem(codec._COLUMNS, "later", (("<f4",), 1, ("num_atoms",)))
    object.__setattr__(columns, "later", np.zeros(len(columns.z), "<f4"))
    block = codec.encode(columns)
    monkeypatch.undo()
    assert_same(codec.decode(block).record(4), records[4])
