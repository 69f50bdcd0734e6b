"""Compiled steps are the steps that are compiled."""

import dataclasses

import pytest
import torch

from fixtures.models import NO_DROPOUT, make_small, outcome
from fixtures.molecules import both
from msde.ops import dispatch
from msde.philox import Key
from msde.training import compilation
from msde.training.compilation import CompiledMoleculeSDE


def compiled_and_plain(kind):
    """Two models of the same weights, in training mode."""
    plain = make_small(kind, *NO_DROPOUT, "run.compile=true")
    compiled = CompiledMoleculeSDE(plain.config)
    compiled.load_state_dict(plain.state_dict())
    return compiled.train(), plain.train()


def assert_close(found, expected, tolerance):
    """Losses and statistics one by one; gradients, some of which are rounding alone, together."""
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if "." in name and "running" not in name]
    for part in (found, expected):
        part["gradient"] = torch.cat([part.pop(name).flatten() for name in gradients])
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm(), name


def in_one_graph(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


def test_noise_and_terms_are_one_graph_each_for_all_batches_of_a_shape(records, monkeypatch):
    """What would break a graph is an error. The operators are those of a plain step.

    An epoch that were a constant of a graph would give wrong noise, or one graph more.
    """
    monkeypatch.setattr(compilation, "compiled", in_one_graph)
    model, plain = compiled_and_plain("paper")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for epoch, molecules in enumerate((records, records, records[::-1], records[3:] + records[:3])):
        full = dataclasses.replace(both(molecules)[1], key=Key(2**40 + 3, epoch))
        assert_close(outcome(model, full), outcome(plain, full), 1e-5)
    assert graphs["unique_graphs"] == before + 2


def test_compiled_noise_of_base_is_that_of_each_epoch(records, monkeypatch):
    monkeypatch.setattr(compilation, "compiled", in_one_graph)
    model, plain = compiled_and_plain("base")
    _, full = both(records)
    model._shapes.add(compilation.sizes_of(full))
    for epoch in (0, 1, 2, 2**31 + 1):
        keyed = dataclasses.replace(full, key=Key(2**63 + 5, epoch))
        found, expected = vars(model.draw_noise(keyed)), vars(plain.draw_noise(keyed))
        for name, value in expected.items():
            assert torch.allclose(found[name], value, 1e-5, 1e-5), name
            assert found[name].dtype == value.dtype


def test_terms_with_the_ops_of_a_gpu_are_one_graph(records, monkeypatch):
    """Traced on the CPU, whose results mean nothing: its ops know no padding."""
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", "triton")
    monkeypatch.setattr(compilation, "compiled", in_one_graph)
    model, _ = compiled_and_plain("paper")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(2):
        outcome(model, both(records)[1])
    assert graphs["unique_graphs"] == before + 2


def test_a_shape_that_is_met_once_is_not_compiled(records, monkeypatch):
    monkeypatch.setattr(compilation, "compiled", lambda function: pytest.fail("compiled"))
    model, plain = compiled_and_plain("paper")
    batch, full = both(records)
    for one in (batch, full, both(records[:4])[1], batch):
        assert_close(outcome(model, one), outcome(plain, one), 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paper", "base"])
@pytest.mark.parametrize("ops", ["cpp", "reference"])
def test_compiled_steps_equal_plain_steps(kind, ops, records, monkeypatch):
    """With torch's products, which are joined, and with the fused ops, which stay."""
    monkeypatch.setenv("MSDE_OPS", ops)
    torch._dynamo.reset()
    model, plain = compiled_and_plain(kind)
    for molecules in (records, records[::-1], records[3:] + records[:3]):
        _, full = both(molecules)
        assert_close(outcome(model, full), outcome(plain, full), 1e-4)
