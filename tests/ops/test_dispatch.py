"""Which backend takes an op, and training by each of them."""

import contextlib

import pytest
import torch

from fixtures.models import KINDS, make_small
from fixtures.ops import threads
from fixtures.triton import TRITONS
from msde.errors import MsdeError
from msde.model.encoders.schnet import Filters
from msde.ops import dispatch, linear
from msde.training.optimizer import parameter_groups


@pytest.fixture
def on_a_gpu(gpu, monkeypatch):
    """Let the check of a GPU of some capability run on a CPU."""

    def pretend(capability):
        monkeypatch.setenv("MSDE_OPS", "fused")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        for name in ("zeros", "ones", "arange"):
            make = getattr(torch, name)
            monkeypatch.setattr(
                torch, name, lambda *a, make=make, **k: make(*a, **(k | {"device": TRITONS}))
            )
        return gpu["sum_over_edges"]

    dispatch._gpu_works.cache_clear()
    yield pretend
    dispatch._gpu_works.cache_clear()


def test_a_gpu_is_tried_once_before_it_is_used(on_a_gpu, monkeypatch, caplog):
    operator, tried = on_a_gpu((8, 0)), []
    launch = operator.triton
    monkeypatch.setattr(operator, "triton", lambda *a: tried.append(1) or launch(*a))
    assert dispatch.available("cuda") and dispatch.available("cuda")
    assert len(tried) == 1 and not caplog.records


@pytest.mark.parametrize("capability", [(6, 1), (8, 0)])
def test_a_gpu_that_triton_cannot_use_is_left_to_torch(on_a_gpu, monkeypatch, caplog, capability):
    def fail(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(on_a_gpu(capability), "triton", fail)
    assert not dispatch.available("cuda") and not dispatch.available("cuda")
    assert len(caplog.records) == 1 and "without Triton" in caplog.text


def test_kernels_are_launched_on_the_device_of_the_tensors(monkeypatch):
    entered = []
    monkeypatch.setattr(
        torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext()
    )
    x = torch.ones(1)
    operator = dispatch.Operator(None, lambda number, x: x)
    assert dispatch._launch_on_gpu(operator, 3, x) is x
    assert entered == [x.device]


def trained(batch, steps=15):
    """Train a small model and return the losses."""
    model = make_small("paper", "model.conformer.dropout=0").train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    losses = []
    for _ in range(steps):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.slow
def test_training_is_that_of_torch_but_for_rounding(batch, monkeypatch, fused):
    monkeypatch.setenv("MSDE_OPS", "reference")
    with threads(2):
        two_threads = trained(batch)
    with threads(1):
        plain = trained(batch)
        monkeypatch.setenv("MSDE_OPS", "fused")
        difference = (trained(batch) - plain).abs().mean()
    assert difference <= max(2 * (two_threads - plain).abs().mean(), 1e-4 * plain.abs().mean())


@pytest.mark.parametrize("kind", ["paper", "base"])
def test_under_autocast_every_op_is_fused(batch, fused, monkeypatch, kind):
    monkeypatch.setattr(Filters, "KNOTS_PER_GAUSSIAN", 1)  # so that few pairs are interpolated
    found, choose = [], dispatch.backend

    def backend(first, *rest, under_autocast=False):
        chosen = choose(first, *rest, under_autocast=under_autocast)
        if under_autocast or not torch.is_autocast_enabled("cpu"):
            found.append(chosen)
        return chosen

    monkeypatch.setattr(dispatch, "backend", backend)
    with torch.autocast("cpu", torch.bfloat16):
        make_small(kind).train()(batch)[0].backward()
    assert found == ["cpp"] * 87


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_fused_and_torch_agree(batch, fused, monkeypatch, kind):
    monkeypatch.setattr(Filters, "KNOTS_PER_GAUSSIAN", 1)

    def losses_and_representations(way, enabled=True):
        monkeypatch.setenv("MSDE_OPS", way)
        model = make_small(kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, terms = model(batch)
            found = [model.encoder_2d(batch), model.encoder_3d(batch)]
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [*terms.values(), *found, torch.cat([grad.flatten() for grad in grads])]

    exact = losses_and_representations("reference", enabled=False)
    for ours, theirs, truth in zip(
        losses_and_representations("fused"),
        losses_and_representations("reference"),
        exact,
        strict=True,
    ):
        size = truth.norm()
        assert (ours - truth).norm() / size <= max(2 * (theirs - truth).norm() / size, 1e-2)


def test_gradients_to_be_differentiated_are_the_others_where_inputs_depend_on_each_other():
    """A residual and what is made of it, as in SchNet: no path outside the op counts."""
    torch.manual_seed(0)
    h, weight = torch.randn(5, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)

    def gradients(create_graph):
        x = h.sin()
        y = linear(x, weight, plus=h).square().sum()
        return torch.autograd.grad(y, [h, weight], create_graph=create_graph)

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(one, other)
    h, weight = h.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda h, weight: linear(h.sin(), weight, plus=h).square(), (h, weight)
    )


def test_a_misspelt_choice_of_ops_is_an_error(monkeypatch):
    monkeypatch.setenv("MSDE_OPS", "refrence")
    with pytest.raises(MsdeError, match="MSDE_OPS is 'refrence', expected fused or reference"):
        dispatch.available()
