"""A step makes no tensor on another device than its batch's; one that only has shapes stands in."""

import contextlib
import dataclasses

import pytest
import torch

from fixtures.models import FEW_KINDS, KINDS, make_small
from fixtures.molecules import both
from fixtures.seeds import mostly_slow
from msde.ops import dispatch


@pytest.fixture(params=["torch", "triton"])
def no_gpu(request, monkeypatch):
    """Let ops on "meta" go where those on a GPU go, with Triton or without."""
    available = dispatch.available
    has_triton = request.param == "triton"
    monkeypatch.setitem(dispatch.BACKENDS, "meta", "triton")
    monkeypatch.setattr(
        dispatch, "available", lambda kind="cpu": has_triton if kind == "meta" else available(kind)
    )
    # torch has no autocast there.
    is_on = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", lambda kind, enabled=True: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and is_on(kind))
    return "meta"


@pytest.mark.parametrize("kind", mostly_slow(KINDS, FEW_KINDS))
def test_all_of_a_step_lies_on_the_device_of_its_batch(kind, records, no_gpu):
    for batch in both(records):
        model = make_small(kind).train().to(no_gpu)
        tensors = {name: tensor.to(no_gpu) for name, tensor in batch.tensors().items()}
        loss, terms = model(dataclasses.replace(batch, **tensors))
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and all(x.device.type == no_gpu for x in [*terms.values(), *gradients])


def test_a_tensor_on_another_device_is_an_error(records, no_gpu):
    batch = both(records)[0]
    with pytest.raises(RuntimeError, match="meta"):
        make_small("base").to(no_gpu)(dataclasses.replace(batch, pos=batch.pos.to(no_gpu)))
