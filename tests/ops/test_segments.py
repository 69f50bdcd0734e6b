"""Sums, means and softmax over segments."""

import torch

from fixtures.ops import rand
from msde import ops


def test_segment_ops_with_an_empty_segment():
    rows = rand(5, 2)
    segment = torch.tensor([0, 0, 2, 2, 2])
    total = ops.segment_sum(rows, segment, 4)
    assert torch.allclose(total[2], rows[2:].sum(0))
    assert (total[[1, 3]] == 0).all()
    mean = ops.segment_mean(rows, segment, torch.tensor([2, 0, 3, 0]))
    assert torch.allclose(mean[0], rows[:2].mean(0)) and (mean[1] == 0).all()
    soft = ops.segment_softmax(rows, segment, 4)
    assert torch.allclose(soft[2:], torch.softmax(rows[2:], 0))
    assert torch.autograd.gradcheck(lambda r: ops.segment_softmax(r, segment, 4), (rows,))


def test_sum_of_consecutive_rows_is_that_of_segments():
    ptr, segment = torch.tensor([0, 0, 2, 5, 5]), torch.tensor([1, 1, 2, 2, 2])
    rows = rand(5, 3)
    found = ops.segments.sum_consecutive(rows, ptr)
    assert torch.allclose(found, ops.segment_sum(rows, segment, 4))


def test_softmax_of_huge_logits_is_finite():
    soft = ops.segment_softmax(torch.tensor([[1e4], [-1e4], [3e38]]), torch.tensor([0, 0, 1]), 2)
    assert soft.tolist() == [[1.0], [0.0], [1.0]]
