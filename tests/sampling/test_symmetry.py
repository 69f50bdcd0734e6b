"""Samplers turn with their noise, and a sample depends on nothing but its own rows."""

import pytest
import torch

from fixtures.gaussians import SDES, normals
from msde.sampling import SAMPLERS, karras_times, keyed_noise

SIZES = torch.tensor([1, 4, 7, 2])
BATCH = torch.arange(4).repeat_interleave(SIZES)  # (rows,)
ROWS = len(BATCH)
# The steps of the adaptive solver are chosen for all samples together.
CLOSE = {"adaptive": 1e-3}


def score_in(kind, batch):
    """A score that turns with x: each row is pulled to zero, and pushed by those of its sample."""
    same = batch[:, None] == batch[None]

    def score(x, t):
        alpha, std = SDES[kind].marginal_prob(torch.ones_like(t).view(1), t.view(1))
        spread = torch.hypot(alpha, std)
        between = (x[:, None] - x[None]) / spread.unsqueeze(-1)  # (rows, rows, 3)
        push = between * torch.exp(-between.square().sum(-1, keepdim=True)) * same[..., None]
        return (0.5 * push.sum(1) - x / spread) / spread

    return score


def sample(name, kind, noise, batch, turn=None):
    turn = torch.eye(3, dtype=torch.float64) if turn is None else turn
    x = SDES[kind].prior_sampling(noise(999)) @ turn.T
    times = karras_times(SDES[kind], 12)
    score = score_in(kind, batch)
    return SAMPLERS[name](
        score, SDES[kind], x, times, noise=lambda k: noise(k) @ turn.T, batch=batch
    )


names = pytest.mark.parametrize("name", SAMPLERS)
kinds = pytest.mark.parametrize("kind", SDES)


@names
@kinds
def test_turned_noise_gives_the_turned_sample(name, kind):
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    noise = normals((ROWS, 3), seed=3)
    plain, turned = sample(name, kind, noise, BATCH), sample(name, kind, noise, BATCH, turn)
    assert plain.std() > 1e-2 and not torch.allclose(plain, turned, rtol=1e-2)
    assert torch.allclose(plain @ turn.T, turned, rtol=1e-6, atol=1e-9)


@names
@kinds
def test_a_sample_does_not_depend_on_its_batch_mates(name, kind):
    noise, close = normals((ROWS, 3), seed=4), CLOSE.get(name, 1e-9)
    together = sample(name, kind, noise, BATCH)
    for number, size in enumerate(SIZES.tolist()):
        rows = BATCH == number
        alone = torch.zeros(size, dtype=torch.int64)
        found = sample(name, kind, lambda k, rows=rows: noise(k)[rows], alone)
        assert torch.allclose(found, together[rows], rtol=close, atol=close)


@names
def test_the_same_noise_gives_the_same_sample_to_the_bit(name):
    noise = normals((ROWS, 3), seed=5)
    first, second = (sample(name, "VP", noise, BATCH) for _ in range(2))
    assert torch.equal(first, second)
    other = sample(name, "VP", normals((ROWS, 3), seed=6), BATCH)
    assert not torch.allclose(first, other, rtol=0.1)


@names
@kinds
def test_a_sample_of_one_atom_at_the_origin_stays_there(name, kind):
    """Centred noise on one atom is zero, and so is its score."""
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    out = sample(name, kind, lambda k: zeros, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(out, zeros)


def test_keyed_noise_is_a_function_of_its_own_keys():
    uid = torch.tensor([5, 5, 2**62, 7])
    item = torch.tensor([0, 1, 0, 2**16])
    noise = keyed_noise(11, uid, item, 3)
    assert noise(0).shape == (4, 3) and torch.equal(noise(4), noise(4))
    alone = keyed_noise(11, uid[2:3], item[2:3], 3)
    assert torch.equal(alone(4), noise(4)[2:3])
    draws = torch.stack([noise(0), noise(1), keyed_noise(12, uid, item, 3)(0)]).flatten()
    assert len(draws.unique()) == draws.numel()
    many = keyed_noise(1, torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64), 3)(9)
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
