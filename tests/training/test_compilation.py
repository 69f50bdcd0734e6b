"""Compiled steps are the steps that are compiled."""

import pytest
import torch

from fixtures.models import NO_DROPOUT, make_small, outcome
from fixtures.molecules import both
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


def test_the_terms_are_one_graph_for_all_batches_of_a_shape(records, monkeypatch):
    """What would break a graph is an error. The operators are those of a plain step."""
    monkeypatch.setattr(compilation, "compiled", in_one_graph)
    model, plain = compiled_and_plain("paper")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for molecules in (records, records, records[::-1], records[3:] + records[:3]):
        _, full = both(molecules)
        assert_close(outcome(model, full), outcome(plain, full), 1e-5)
    assert graphs["unique_graphs"] == before + 1


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
