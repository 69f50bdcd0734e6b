"""Compiled steps are the steps that are compiled."""

import dataclasses
import random

import pytest
import torch

from fixtures.models import NO_DROPOUT, assert_outcomes_close, make_small, outcome
from fixtures.molecules import both
from fixtures.ops import threads
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


def in_one_graph(function, under_autocast=False):
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


@pytest.mark.slow
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
        assert_outcomes_close(outcome(model, full), outcome(plain, full), 1e-5)
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
            assert torch.equal(found[name], value), name
            assert found[name].dtype == value.dtype


@pytest.mark.slow
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
        assert_outcomes_close(outcome(model, one), outcome(plain, one), 0)


class Node:
    """A node of the compiler's scheduler, and what has to run before it."""

    def __init__(self, *before, is_kernel=True, numbers_in_sum=0):
        self.before, self.is_kernel, self.numbers_in_sum = before, is_kernel, numbers_in_sum
        self.group = (None, (1, numbers_in_sum))

    def get_device(self):
        return torch.device("cuda")

    def is_reduction(self):
        return self.numbers_in_sum > 0

    def is_template(self):
        return False

    @property
    def ancestors(self):
        return set(self.before).union(*(node.ancestors for node in self.before))


class Scheduler:
    """Of nodes that are sorted."""

    def __init__(self, nodes):
        self.nodes = nodes

    def _topological_sort_nodes(self):
        return [[node] for node in self.nodes]

    def _get_unmet_dep_nodes(self, node):
        return list(node.before)


def groups_of(nodes):
    return compilation.groups_of_kernels(Scheduler(nodes), lambda node: node.is_kernel)


def test_kernels_of_branches_that_have_other_operators_between_are_joined():
    one, other, late = Node(), Node(), Node()
    product = Node(Node(one, is_kernel=False), is_kernel=False)
    nodes = [one, other, late, product.before[0], product]
    nodes += [Node(product), Node(other)]
    assert [set(group) for group in groups_of(nodes)] == [{one, other, late}, set(nodes[-2:])]


def test_sums_wait_for_each_other():
    first = Node()
    chain = [first, Node(first, numbers_in_sum=9)]
    chain += [Node(first), Node(first, numbers_in_sum=9000)]
    chain += [Node(chain[2], numbers_in_sum=9)]
    groups = groups_of(chain)
    assert {frozenset(group) for group in groups} == {
        frozenset(chain[:1]),
        frozenset(chain[2:3]),
        frozenset([chain[1], chain[4]]),
        frozenset(chain[3:4]),
    }


def test_kernels_of_a_group_do_not_need_each_other():
    chance = random.Random(3)
    nodes = []
    for _ in range(300):
        before = chance.sample(nodes[-20:], min(len(nodes), chance.randrange(3)))
        numbers_in_sum = chance.choice([0, 0, 5, 5000])
        nodes.append(Node(*before, is_kernel=chance.random() < 0.6, numbers_in_sum=numbers_in_sum))
    groups = groups_of(nodes)
    kernels = [node for node in nodes if node.is_kernel]
    assert sorted(map(id, kernels)) == sorted(id(node) for group in groups for node in group)
    behind = set()
    for group in reversed(groups):  # in an order in which all can run
        behind |= set(group)
        assert not behind & set().union(*(node.ancestors for node in group))


@pytest.mark.slow
def test_products_of_two_types_are_compiled():
    """Under autocast the encoders multiply in float32, the score networks in bfloat16."""
    weights = [torch.nn.Parameter(torch.randn(32, 32) / 6) for _ in range(3)]

    def multiply(x):
        with torch.autocast("cpu", enabled=False):
            one = x @ weights[0]
        return one.sum() + (torch.relu(x @ weights[1]) @ weights[2]).float().sum()

    x = torch.randn(64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = multiply(x), compilation.compiled(multiply, under_autocast=True)(x)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1)
    found.backward()


@pytest.mark.slow
def test_sums_by_index_are_right_with_several_threads():
    """Of a transposed tensor, where torch 2.13's code for several threads leaves its memory."""
    rows, other, index = torch.randn(92, 8), torch.randn(8, 92), torch.randint(0, 392, (92,))

    def sums(rows):
        return torch.zeros(8, 392).index_add(1, index, rows.t() + other)

    with threads(2):
        found = compilation.compiled(sums)(rows)
    assert torch.allclose(found, sums(rows))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paper", "base"])
@pytest.mark.parametrize("ops", ["fused", "reference"])
def test_compiled_steps_equal_plain_steps(kind, ops, records, monkeypatch):
    """With torch's products, which are joined, and with the fused ops, which stay."""
    monkeypatch.setenv("MSDE_OPS", ops)
    torch._dynamo.reset()
    model, plain = compiled_and_plain(kind)
    for molecules in (records, records[::-1], records[3:] + records[:3]):
        _, full = both(molecules)
        assert_outcomes_close(outcome(model, full), outcome(plain, full), 1e-4)
