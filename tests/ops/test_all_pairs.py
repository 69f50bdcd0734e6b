"""Moves and attention over all pairs of atoms, against the ops on edges."""

import pytest
import torch

from fixtures.conformers import sampling_model
from fixtures.ops import medium_precision, offsets, threads
from msde import ops
from msde.data.ragged import complete_edges
from msde.model.layers import gaussians
from msde.ops.dispatch import OPERATORS

SIZES = [[5, 1, 2, 9], [1], [40, 3], [70]]
EPSILON = 1e-8


def inputs(sizes, heads, dim, width=24, known=5, dtype=torch.float64):
    torch.manual_seed(0)
    n, pairs = sum(sizes), sum(s * (s - 1) // 2 for s in sizes)
    outputs = heads * dim + 1
    shapes = [(n, 3), (n, width), (n, width), (pairs, known), (width, known + 7)]
    shapes += [(outputs, width), (outputs,)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    queries = tuple(torch.randn(n, heads * dim, dtype=dtype) for _ in range(3)) if heads else None
    return *tensors, queries, heads, torch.linspace(0, 2.7, 7, dtype=dtype), offsets(sizes), EPSILON


def all_edges(sizes):
    atoms = torch.tensor(sizes)
    index = complete_edges(atoms, sum(sizes), sum(s * (s - 1) for s in sizes))
    return ops.Edges(index, offsets((atoms - 1).repeat_interleave(atoms)), offsets(sizes))


def by_edges(pos, a, b, known, attr_weight, weight, bias, queries, heads, centres, sizes):
    """Return the same by `edge_mlp` and `edge_attention`."""
    edges = all_edges(sizes)
    source, target = edges.index
    # In a molecule the pair i < j is the one of number j (j - 1) / 2 + i.
    first = torch.repeat_interleave(edges.ptr[:-1], torch.tensor(sizes))
    before = offsets([s * (s - 1) // 2 for s in sizes])
    graph = torch.repeat_interleave(torch.tensor(sizes))
    i, j = (
        torch.minimum(source, target) - first[target],
        torch.maximum(source, target) - first[target],
    )
    pair = before[graph[target]] + j * (j - 1) // 2 + i
    difference = pos[target] - pos[source]
    distance = (difference.square().sum(-1) + EPSILON).sqrt()
    attr = torch.cat([known[pair], gaussians(torch.log1p(distance), centres)], -1)
    e = ops.edge_mlp(a, b, weight, bias, edges, "silu", attr, attr_weight)
    moves = e[:, -1:] * difference / (1 + distance).unsqueeze(-1)
    moves = ops.segment_sum(moves, target, len(pos))
    if queries is None:
        return moves, None
    return moves, ops.edge_attention(*queries, e[:, :-1].contiguous(), None, edges, heads)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("heads, dim", [(0, 0), (2, 3), (8, 16), (3, 20)])
def test_it_equals_the_ops_on_edges(fused, sizes, heads, dim):
    *given, ptr, epsilon = inputs(sizes, heads, dim)
    expected_moves, expected = by_edges(*given, sizes)
    moves, found = ops.all_pairs(*given, ptr, epsilon)
    assert torch.allclose(moves, expected_moves, 1e-10, 1e-10)
    if heads:
        assert torch.allclose(found, expected, 1e-10, 1e-10)


def test_in_float32_it_is_as_accurate(fused):
    *given, ptr, epsilon = inputs([18, 30], 8, 16, width=128)
    exact = ops.all_pairs(*given, ptr, epsilon)
    narrow = [
        x.float() if isinstance(x, torch.Tensor) else x and tuple(y.float() for y in x)
        if isinstance(x, tuple) else x
        for x in given
    ]  # fmt: skip
    for one, other in zip(ops.all_pairs(*narrow, ptr, epsilon), exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 1e-5


def test_bits_do_not_depend_on_threads(fused):
    given = inputs([3, 1, 14, 18, 9, 2] * 2, 4, 16, dtype=torch.float32)
    first = ops.all_pairs(*given)
    for number in (2, 3):
        with threads(number):
            for one, other in zip(first, ops.all_pairs(*given), strict=True):
                assert torch.equal(one, other)


def test_it_is_used_where_no_gradient_is_kept(fused):
    x = torch.ones(2, 2)
    assert not ops.all_pairs_fits(x)
    with torch.no_grad():
        assert ops.all_pairs_fits(x)
        assert not ops.all_pairs_fits(x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not ops.all_pairs_fits(x)


def test_the_operator_is_as_registered(fused):
    pos, a, b, known, attr_weight, weight, bias, queries, heads, _, ptr, epsilon = inputs(
        [3, 4], 2, 3
    )
    arguments = (pos, a, b, known, attr_weight, weight, bias, *queries, ptr, heads, 0.4, epsilon)
    assert "all_pairs" in OPERATORS
    torch.library.opcheck(torch.ops.msde.all_pairs.default, arguments)


def test_the_network_of_conformers_is_the_same_with_and_without_it(fused, batch):
    model = sampling_model()
    network, t = model.score_2d_to_3d, torch.linspace(0.1, 0.9, batch.num_graphs)
    pos = network.to_subspace(batch.pos + 0.3 * torch.sin(batch.pos.flip(0)), batch)
    h = model.encoder_2d(batch).detach()
    by_edges = network(pos, t, h, batch).detach()
    with torch.no_grad():
        found = network(pos, t, h, batch)
    assert not torch.equal(found, by_edges)
    assert (found - by_edges).abs().max() < 1e-5 * by_edges.abs().max()


def test_it_is_close_at_medium_precision(fused):
    """Where the processor multiplies bfloat16, factors are rounded to it."""
    given = inputs([40, 3], 3, 20, dtype=torch.float32)
    exact = ops.all_pairs(*given)
    with medium_precision():
        found = ops.all_pairs(*given)
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
