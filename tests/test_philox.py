import torch

from msde import philox
from msde.philox import Key, Stream


def run(counter, key):
    words = philox.philox4x32(tuple(torch.tensor([w]) for w in counter), key)
    return [f"{int(w):08x}" for w in words]


def test_known_answers_of_random123():
    ones = 0xFFFFFFFF
    assert run((0, 0, 0, 0), (0, 0)) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert run((ones,) * 4, (ones,) * 2) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert run(pi, (0xA4093822, 0x299F31D0)) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def test_normals_have_the_moments_of_a_normal():
    uid = torch.arange(100_000)
    z = philox.normal(Key(3, 1), Stream.POSITION_NOISE, uid, 0, 5)
    assert z.isfinite().all()
    assert z.mean(0).abs().max() < 0.02
    assert (z.var(0) - 1).abs().max() < 0.02
    assert (z.pow(4).mean(0) - 3).abs().max() < 0.15
    correlation = torch.corrcoef(z.T) - torch.eye(5)
    assert correlation.abs().max() < 0.02


def test_a_number_depends_on_its_own_key_only():
    uid = torch.tensor([5, -7, 2**62])
    item = torch.tensor([0, 3, 1])
    key, stream = Key(2**40 + 1, 9), Stream.ATOM_TYPE_NOISE
    together = philox.normal(key, stream, uid, item, 119)
    alone = philox.normal(key, stream, uid[1:2], item[1:2], 119)
    assert torch.equal(together[1:2], alone)
    for other in (Key(2**40, 9), Key(1, 9), Key(2**40 + 1, 8)):
        assert not torch.equal(together, philox.normal(other, stream, uid, item, 119))
    assert not torch.equal(together, philox.normal(key, Stream.BOND_NOISE, uid, item, 119))


def test_words_of_wide_rows_start_with_those_of_narrow_rows():
    uid = torch.arange(4)
    key = Key(0, 0)
    wide = philox.words(key, Stream.MASKING, uid, 0, 11)
    assert torch.equal(wide[:, :3], philox.words(key, Stream.MASKING, uid, 0, 3))
