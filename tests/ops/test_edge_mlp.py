"""The network of each edge."""

import pytest
import torch
from torch import nn

from fixtures.ops import edges_of, rand
from msde import ops


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
