"""Linear maps."""

import pytest
import torch
from torch import nn

from fixtures.ops import Recorder, threads
from msde import ops

LAYERS = [
    (0, 3, 4),
    (1, 0, 2),
    (7, 1, 1),
    (61, 800, 33),
    (130, 65, 64),
    (500, 130, 110),
    (1100, 130, 110),
    (70, 10_001, 1),
]


@pytest.mark.parametrize("activation", [None, "silu", "tanh"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("shape", LAYERS)
def test_layers_of_every_shape(fused, monkeypatch, shape, channels, wide, activation):
    """Small and large ones, weights that are a part of wider ones, any number of threads."""
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    of_channels = [] if channels is None else [channels]
    x = torch.randn(rows, inputs, requires_grad=True)
    weight = torch.randn(*of_channels, outputs, inputs + wide, requires_grad=True)
    bias = torch.randn(*of_channels, outputs, requires_grad=True)
    g = torch.randn(*of_channels, rows, outputs)

    def run(way, num_threads=1):
        monkeypatch.setenv("MSDE_OPS", way)
        with threads(num_threads):
            y = ops.linear(x, weight[..., :inputs], bias, activation)
            return [y, *torch.autograd.grad(y, [x, weight, bias], g)]

    found = run("fused")
    for ours, theirs in zip(found, run("reference"), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    for num_threads in (2, 3, 4):
        assert all(map(torch.equal, found, run("fused", num_threads)))


def test_products_that_do_not_fit_are_refused(fused):
    x, weight = torch.randn(4, 5), torch.randn(3, 5)
    for misfit in ((x[:, :4], weight), (x, weight, torch.randn(2)), (x, weight[0, :4])):
        with pytest.raises(RuntimeError):
            ops.linear(*misfit)
    with pytest.raises(RuntimeError):
        ops.linear(x, weight, plus=torch.randn(3, 3))
    with pytest.raises(ValueError, match="not both"):
        ops.linear(x, weight, None, "relu", torch.randn(4, 3))


@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 3, 5), (2, 0, 5), (4, 2, 3, 5)])
def test_rows_of_any_shape_are_multiplied_by_own_code(fused, shape):
    weight, bias, x = torch.randn(4, 5), torch.randn(4), torch.randn(shape)
    with Recorder() as recorder:
        y = ops.linear(x, weight, bias)
    assert torch.allclose(y, nn.functional.linear(x, weight, bias))
    assert [operator._opname for operator, _ in recorder.calls] == ["linear"]
