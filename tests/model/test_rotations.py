"""Averages over rotations, against sums over many rotations."""

import torch

from msde.model.rotations import RotationMean

rotation_mean = RotationMean()


def rotations(count, seed=0):
    """Rotations that are uniform on SO(3), from uniform quaternions, (count, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def test_the_mean_equals_a_weighted_sum_over_many_rotations():
    every = rotations(400_000)
    generator = torch.Generator().manual_seed(1)
    for scale in (0, 0.3, 1, 3):
        for sign in (1, -1):  # of the determinant
            m = scale * torch.randn(3, 3, generator=generator, dtype=torch.float64)
            m = m * sign * m.det().sign()
            weight = torch.softmax((every * m).sum((1, 2)), 0).view(-1, 1, 1)
            error = (rotation_mean(m[None])[0] - (weight * every).sum(0)).abs().max()
            assert error < 8e-3, (scale, sign)


def test_the_mean_of_a_sharp_distribution_is_its_mode():
    m = rotations(20)
    assert torch.allclose(rotation_mean(1e7 * m), m, atol=1e-6)
    assert rotation_mean(torch.zeros(1, 3, 3)).abs().max() < 1e-12
    only_an_axis = torch.diag(torch.tensor([1e5, 0.0, 0.0]))
    expected = torch.diag(torch.tensor([1.0, 0.0, 0.0])).double()
    assert torch.allclose(rotation_mean(only_an_axis[None])[0], expected, atol=1e-4)


def test_the_average_turns_with_the_noised_positions_and_ignores_how_the_clean_ones_lie():
    generator = torch.Generator().manual_seed(0)
    batch = torch.tensor([0] * 6 + [1] * 3)
    pos = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    pos_t = pos + 0.7 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    alpha, std = torch.tensor([1.0, 0.8]).double(), torch.tensor([0.7, 0.5]).double()
    turn, other = rotations(2)
    mean = rotation_mean.average(pos_t, pos, alpha, std, batch)
    turned = rotation_mean.average(pos_t @ turn.T, pos @ other.T, alpha, std, batch)
    assert torch.allclose(turned, mean @ turn.T, atol=1e-10)


def test_without_noise_the_average_is_the_clean_positions():
    generator = torch.Generator().manual_seed(0)
    pos = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    batch, one = torch.zeros(5, dtype=torch.int64), torch.ones(1).double()
    turn = rotations(1)[0]
    mean = rotation_mean.average(pos @ turn.T, pos, one, 1e-4 * one, batch)
    assert torch.allclose(mean, pos @ turn.T, atol=1e-6)


def test_autocast_does_not_round_the_average():
    generator = torch.Generator().manual_seed(0)
    batch, one = torch.tensor([0] * 6 + [1] * 3), torch.ones(2)
    pos = torch.randn(9, 3, generator=generator)
    pos_t = pos + 0.03 * torch.randn(9, 3, generator=generator)
    expected = rotation_mean.average(pos_t, pos, one, 0.03 * one, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = rotation_mean.average(pos_t, pos, one, 0.03 * one, batch)
    assert torch.equal(found, expected)
