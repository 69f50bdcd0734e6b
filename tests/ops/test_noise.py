"""Random numbers by every backend."""

import pytest
import torch

from fixtures.triton import TRITONS
from msde import ops, philox
from msde.philox import Key, Stream


@pytest.mark.parametrize("count", [1, 3, 119, 5000])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_normals_are_those_of_philox(fused, rows, count):
    uid, item = torch.randint(-(2**62), 2**62, (rows,)), torch.randint(2**31, (rows,))
    key, stream = Key(2**40 + 77, 9), Stream.ATOM_TYPE_NOISE
    found = ops.normals(key, stream, uid, item, count)
    assert torch.allclose(found, philox.normal(key, stream, uid, item, count), 1e-5, 1e-5)
    by_tensor = Key(key.seed, torch.tensor(key.epoch))
    assert torch.equal(ops.normals(by_tensor, stream, uid, item, count), found)
    for row in range(0, rows, 99):
        alone = ops.normals(key, stream, uid[row : row + 1], item[row : row + 1], count)
        assert torch.equal(alone[0], found[row])


@pytest.mark.parametrize("count", [1, 3, 119])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_random_numbers_by_triton(gpu, rows, count):
    with torch.device(TRITONS):
        uid, item = torch.randint(-(2**62), 2**62, (rows,)), torch.randint(2**32, (rows,))
    stream = Stream.BOND_NOISE
    for key in (Key(2**40 + 77, 9), Key(2**63 + 5, 2**31)):
        for items in (item, None):
            expected = philox.words(key, stream, uid, 0 if items is None else items, count)
            found = gpu["words"].triton(uid, items, count, int(stream), key.words)
            assert torch.equal(found, expected)
        found = gpu["normals"].triton(uid, item, count, int(stream), key.words)
        assert torch.allclose(found, philox.normal(key, stream, uid, item, count), 1e-5, 1e-5)
        (low, _), high = key.words, torch.tensor(key.words[1], device=TRITONS)
        assert torch.equal(
            gpu["normals"].triton(uid, item, count, int(stream), (low, 0), high), found
        )


@pytest.mark.parametrize("size", [(0, 8), (5, 3), (3000, 8)])
def test_dropout_is_the_same_in_cpp_and_torch(fused, monkeypatch, size):
    found = []
    for way in ("fused", "reference"):
        monkeypatch.setenv("MSDE_OPS", way)
        torch.manual_seed(3)
        found.append([ops.dropout_factors(size, 0.1, torch.ones(1)) for _ in range(2)])
    (one, other), reference = found
    assert one.shape == size and all(map(torch.equal, found[0], reference))
    if len(one) > 100:
        assert not torch.equal(one, other)
        assert abs((one == 0).float().mean() - 0.1) < 0.01
        assert torch.isclose(one.max(), torch.tensor(1 / 0.9)) and len(one.unique()) == 2
