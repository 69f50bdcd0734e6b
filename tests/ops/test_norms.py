"""BatchNorm over rows and over edges."""

import pytest
import torch
from torch import nn

from fixtures.ops import edges_of, rand
from fixtures.triton import TRITONS
from msde import ops
from msde.ops.norms import normalised_over_valid_rows


@pytest.mark.parametrize(("num_valid", "relu"), [(2, True), (9, False), (50, True)])
def test_padding_has_no_part_in_the_statistics_on_a_gpu(gpu, num_valid, relu):
    torch.manual_seed(0)
    with torch.device(TRITONS):
        x, weight, bias = rand(50, 70), rand(70), rand(70)
        num_valid, g = torch.tensor(num_valid), torch.randn(50, 70, dtype=torch.float64)
    inputs = (x, weight, bias, relu, 1e-5, num_valid)
    expected = normalised_over_valid_rows(*inputs)
    found = gpu["batch_norm"].triton(*inputs)
    assert all(map(torch.allclose, found, expected))
    gradients = torch.autograd.grad(expected[0], inputs[:3], g)
    assert all(
        map(torch.allclose, gpu["batch_norm_grad"].triton(g, *inputs, *found[1:]), gradients)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [[1, 1], [2], [9, 1, 5, 12]])
def test_edge_norm(way, training, sizes, monkeypatch):
    monkeypatch.setattr("msde.ops.graphs.EDGES_OF_CHUNK", 16)  # several chunks
    torch.manual_seed(0)
    edges, n = edges_of(sizes, share=1), sum(sizes)
    source, target = edges.index
    norm, project = nn.BatchNorm1d(5).double(), nn.Linear(5, 4).double()
    plain = nn.BatchNorm1d(5).double()
    for name in ("weight", "bias"):
        nn.init.normal_(getattr(norm, name))
        getattr(plain, name).data.copy_(getattr(norm, name))
    norm.train(training)
    plain.train(training and len(source) > 1)
    a, b = rand(n, 5), rand(n, 5)
    inputs = [a, b, norm.weight, norm.bias, *project.parameters()]
    normed = ops.edge_norm(a, b, norm, edges)
    ours = ops.edge_mlp(*normed, project.weight, project.bias, edges, "relu")
    expected = project(torch.relu(plain(a[source] + b[target])))
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
