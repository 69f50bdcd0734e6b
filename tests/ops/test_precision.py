"""Products of the C++ ops at `torch.set_float32_matmul_precision("medium")`."""

import importlib
import platform
from pathlib import Path

import pytest
import torch

from fixtures.ops import cases, medium_precision, results, threads
from msde import ops
from msde.ops import cpp

CPU = Path("/proc/cpuinfo")
ROUNDS = CPU.exists() and platform.machine() == "x86_64" and "avx512_bf16" in CPU.read_text()
PRODUCTS = ["linear", "linear silu", "linear of channels", "linear plus", "fourier_linear",
            "edge_mlp silu", "edge_mlp silu attr"]  # fmt: skip


def rounded(x):
    """As a factor of a product, in float64."""
    return (x.bfloat16() if ROUNDS else x).double()


LINEAR = importlib.import_module("msde.ops.linear")  # of the package, `linear` is the function
is_faster_than_torch = LINEAR._is_faster_than_torch  # the other tests replace it
SHAPES = [(1, 1, 1), (33, 15, 17), (16, 16, 16), (61, 800, 33), (70, 65, 64), (1100, 131, 110)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [None, 3])
def test_factors_are_rounded_and_sums_are_not(fused, shape, channels):
    rows, inputs, outputs = shape
    of_channels = [] if channels is None else [channels]
    torch.manual_seed(0)
    x = torch.randn(rows, inputs, requires_grad=True)
    weight = torch.randn(*of_channels, outputs, inputs, requires_grad=True)
    g = torch.randn(*of_channels, rows, outputs)
    with medium_precision():
        y = ops.linear(x, weight)
        gx, g_weight = torch.autograd.grad(y, [x, weight], g)
    one, other, of_y = (rounded(tensor.detach()) for tensor in (x, weight, g))
    each_gx = of_y @ other
    expected_gx = each_gx if channels is None else each_gx.sum(0)
    expected = (one @ other.mT, expected_gx, of_y.mT @ one)
    for found, exact in zip((y, gx, g_weight), expected, strict=True):
        assert (found - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("inputs", [15, 40])
def test_what_is_no_number_stays_in_its_row(fused, inputs):
    torch.manual_seed(0)
    x, weight, g = torch.randn(37, inputs), torch.randn(18, inputs), torch.randn(37, 18)
    weight.requires_grad_()
    spoilt, row = x.clone(), torch.arange(37) == 20
    spoilt[20, 3] = float("nan")
    with medium_precision():
        y, expected = ops.linear(spoilt, weight), ops.linear(x, weight)
        (found,) = torch.autograd.grad(y, weight, g)
        (expected_grad,) = torch.autograd.grad(expected, weight, g)
    assert y[row].isnan().all() and torch.equal(y[~row], expected[~row])
    assert found[:, 3].isnan().all()
    column = torch.arange(inputs) == 3
    assert torch.equal(found[:, ~column], expected_grad[:, ~column])


@pytest.mark.parametrize("tiles", [True, False])
def test_tiles_are_chosen_at_medium_precision(monkeypatch, tiles):
    monkeypatch.setattr(cpp, "has_tiles", lambda: tiles)
    monkeypatch.setattr(LINEAR, "_has_slow_products", lambda: False)
    assert not is_faster_than_torch()
    with medium_precision():
        assert is_faster_than_torch() == tiles


def test_a_layer_without_outputs_has_no_gradient(fused):
    """After another product, whose memory is there to be taken for factors."""
    x = torch.randn(40, 40, requires_grad=True)
    with medium_precision():
        for outputs in (30, 0):
            weight = torch.randn(outputs, 40, requires_grad=True)
            gx, g_weight = torch.autograd.grad(ops.linear(x, weight).sum(), [x, weight])
    assert not gx.any() and g_weight.shape == (0, 40)


def test_a_large_layer_does_not_depend_on_threads(fused):
    torch.manual_seed(0)
    x = torch.randn(1100, 131, requires_grad=True)
    weight = torch.randn(110, 131, requires_grad=True)
    g = torch.randn(1100, 110)

    def computed():
        y = ops.linear(x, weight, activation="silu")
        return [y, *torch.autograd.grad(y, [x, weight], g)]

    with medium_precision():
        expected = computed()
        for number in (2, 3, 4):
            with threads(number):
                assert all(map(torch.equal, computed(), expected))


@pytest.mark.parametrize("name", PRODUCTS)
def test_results_are_close_and_do_not_depend_on_threads(fused, name):
    case = cases(name, [3, 1, 14, 18, 9, 2] * 4, width=70)
    narrow = [x.detach().float() for x in case.inputs]
    weight = torch.randn_like(case.op(*narrow))
    exact, single = results(case, case.inputs, weight), results(case, narrow, weight)
    with medium_precision():
        found = results(case, narrow, weight)
        for number in (2, 3, 4):
            with threads(number):
                assert all(map(torch.equal, found, results(case, narrow, weight)))
        assert all(map(torch.equal, exact, results(case, case.inputs, weight)))  # float64
    for one, other in zip(found, single, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
    assert all(map(torch.equal, found, single)) != ROUNDS
    assert all(map(torch.equal, single, results(case, narrow, weight)))
