"""The network of each edge."""

import pytest
import torch
from torch import nn

from fixtures.ops import edges_of, rand
from fixtures.triton import use_triton
from msde import ops
from msde.ops import dispatch


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_edge_mlp_is_a_network_of_the_sum_at_each_edge(way, activation, monkeypatch):
    monkeypatch.setattr("msde.ops.graphs.EDGES_OF_CHUNK", 8)
    torch.manual_seed(0)
    edges = edges_of([7])
    source, target = edges.index
    output = nn.Linear(5, 3).double()
    a, b, edge_attr, edge_weight = rand(7, 5), rand(7, 5), rand(len(source), 4), rand(5, 4)
    hidden = a[source] + b[target] + edge_attr @ edge_weight.T
    expected = output(getattr(nn.functional, activation)(hidden))
    parameters = (output.weight, output.bias)
    ours = ops.edge_mlp(a, b, *parameters, edges, activation, edge_attr, edge_weight)
    assert torch.allclose(ours, expected)


@pytest.mark.parametrize("by_triton", [True, False])
def test_gradients_as_made_on_a_gpu_are_those_of_a_cpu(gpu, monkeypatch, by_triton):
    monkeypatch.setenv("MSDE_OPS", "fused" if by_triton else "reference")
    torch.manual_seed(0)
    edges = edges_of([9, 1, 5, 12])
    n, num_edges = edges.num_atoms, edges.index.shape[1]
    weights = rand(3, 5), rand(3), rand(num_edges, 4), rand(5, 4)
    a, b, g = rand(n, 5), rand(n, 5), torch.randn(num_edges, 3, dtype=torch.float64)
    found = []
    for backend in ("cpp", "triton"):
        monkeypatch.setitem(dispatch.BACKENDS, "cpu", backend)
        edges = ops.Edges(edges.index, edges.row_ptr, edges.ptr)
        if backend == "triton":
            use_triton(gpu, monkeypatch)
        weight, bias, attr, attr_weight = weights
        y = ops.edge_mlp(a, b, weight, bias, edges, "silu", attr, attr_weight)
        found.append([y, *torch.autograd.grad(y, (a, b, *weights), g)])
    assert all(map(torch.allclose, *found))
