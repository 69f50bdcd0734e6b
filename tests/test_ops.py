import pytest
import torch
from torch import nn

from msde import geometry, ops

SIZES = {"molecules of 1, 2, 5 and 9 atoms": [1, 2, 5, 9], "one atom": [1], "two atoms": [2]}


def pairs_of(sizes):
    num_pairs = sum(n * (n - 1) // 2 for n in sizes)
    return geometry.complete_pairs(torch.tensor(sizes), sum(sizes), num_pairs), sum(sizes)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_complete_pairs():
    pairs, _ = pairs_of([1, 3, 2])
    assert pairs.tolist() == [[1, 1, 2, 4], [2, 3, 3, 5]]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_filter_conv(sizes):
    pairs, num_atoms = pairs_of(sizes)
    torch.manual_seed(0)
    x, weight = rand(num_atoms, 3), rand(pairs.shape[1], 3)
    dense = torch.zeros(num_atoms, num_atoms, 3, dtype=torch.float64)
    dense[pairs[0], pairs[1]] = weight
    dense[pairs[1], pairs[0]] = weight
    assert torch.allclose(ops.filter_conv(x, weight, pairs), torch.einsum("ijf,jf->if", dense, x))
    assert torch.autograd.gradcheck(ops.filter_conv, (x, weight, pairs))
    assert torch.autograd.gradgradcheck(ops.filter_conv, (x, weight, pairs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_edges", [0, 1, 2, 40])
def test_edge_norm(training, num_edges, monkeypatch):
    monkeypatch.setattr("msde.ops.reference.CHUNK_ROWS", 16)  # several chunks
    torch.manual_seed(0)
    edge_index = torch.randint(0, 7, (2, num_edges))  # atoms without edges among them
    norm, project = nn.BatchNorm1d(5).double(), nn.Linear(5, 4).double()
    plain = nn.BatchNorm1d(5).double()
    for name in ("weight", "bias"):
        nn.init.normal_(getattr(norm, name))
        getattr(plain, name).data.copy_(getattr(norm, name))
    norm.train(training)
    plain.train(training and num_edges > 1)
    a, b = rand(7, 5), rand(7, 5)
    inputs = [a, b, norm.weight, norm.bias, *project.parameters()]
    normed = ops.edge_norm(a, b, norm, edge_index)
    ours = ops.edge_mlp(*normed, project.weight, project.bias, edge_index, "relu")
    expected = project(torch.relu(plain(a[edge_index[0]] + b[edge_index[1]])))
    assert torch.allclose(ours, expected)
    assert torch.allclose(norm.running_mean, plain.running_mean)
    assert torch.allclose(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == plain.num_batches_tracked
    gradient = torch.randn_like(ours)
    plain_inputs = [a, b, plain.weight, plain.bias, *project.parameters()]
    for g, e in zip(
        torch.autograd.grad(ours, inputs, gradient),
        torch.autograd.grad(expected, plain_inputs, gradient),
        strict=True,
    ):
        assert torch.allclose(g, e)


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


def test_softmax_of_huge_logits_is_finite():
    soft = ops.segment_softmax(torch.tensor([[1e4], [-1e4], [3e38]]), torch.tensor([0, 0, 1]), 2)
    assert soft.tolist() == [[1.0], [0.0], [1.0]]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_edge_mlp_with_edge_features(activation, monkeypatch):
    monkeypatch.setattr("msde.ops.reference.CHUNK_ROWS", 8)
    torch.manual_seed(0)
    edge_index = torch.randint(0, 7, (2, 30))
    output = nn.Linear(5, 3).double()
    a, b, edge_attr, edge_weight = rand(7, 5), rand(7, 5), rand(30, 4), rand(5, 4)
    hidden = a[edge_index[0]] + b[edge_index[1]] + edge_attr @ edge_weight.T
    expected = output(getattr(nn.functional, activation)(hidden))

    def ours(a, b, edge_attr, edge_weight):
        parameters = (output.weight, output.bias)
        return ops.edge_mlp(a, b, *parameters, edge_index, activation, edge_attr, edge_weight)

    assert torch.allclose(ours(a, b, edge_attr, edge_weight), expected)
    assert torch.autograd.gradcheck(ours, (a, b, edge_attr, edge_weight))


def test_interpolation_is_exact_for_cubics_and_linear_in_the_table():
    position = torch.tensor([0.0, 0.3, 4.0, 7.99, 8.0, 2.5], dtype=torch.float64)
    keep = torch.tensor([True, True, True, True, True, False])
    at = ops.Interpolation(position, keep, num_rows=11)
    knots = torch.arange(-1, 10, dtype=torch.float64)
    table = torch.stack([knots**3 - knots, knots**2, torch.ones_like(knots)], dim=-1)
    expected = torch.stack([position**3 - position, position**2, torch.ones(6)], dim=-1)
    assert torch.allclose(at(table), expected * keep.unsqueeze(-1))
    assert torch.autograd.gradcheck(at, (table.requires_grad_(),))
