"""Convolutions with filters, and filters interpolated in a table."""

import torch

from fixtures.ops import pairs_of, rand, sizes_of_all_kinds
from msde import ops


@sizes_of_all_kinds
def test_filter_conv(sizes):
    pairs, num_atoms = pairs_of(sizes).index, sum(sizes)
    torch.manual_seed(0)
    x, weight = rand(num_atoms, 3), rand(pairs.shape[1], 3)
    dense = torch.zeros(num_atoms, num_atoms, 3, dtype=torch.float64)
    dense[pairs[0], pairs[1]] = weight
    dense[pairs[1], pairs[0]] = weight
    assert torch.allclose(ops.filter_conv(x, weight, pairs), torch.einsum("ijf,jf->if", dense, x))
    if num_atoms < 20:
        assert torch.autograd.gradcheck(ops.filter_conv, (x, weight, pairs))
        assert torch.autograd.gradgradcheck(ops.filter_conv, (x, weight, pairs))


def test_interpolation_is_exact_for_cubics_and_linear_in_the_table():
    position = torch.tensor([0.0, 0.3, 4.0, 7.99, 8.0, 2.5], dtype=torch.float64)
    keep = torch.tensor([True, True, True, True, True, False])
    at = ops.Interpolation(position, keep, num_rows=11)
    knots = torch.arange(-1, 10, dtype=torch.float64)
    table = torch.stack([knots**3 - knots, knots**2, torch.ones_like(knots)], dim=-1)
    expected = torch.stack([position**3 - position, position**2, torch.ones(6)], dim=-1)
    assert torch.allclose(at(table), expected * keep.unsqueeze(-1))
    assert torch.autograd.gradcheck(at, (table.requires_grad_(),))
