"""A captured graph holds for every batch of its shape; no step makes the host wait for a GPU."""

import pytest
import torch

from fixtures.host_waits import HostWaits
from fixtures.models import (
    FEW_KINDS,
    KINDS,
    NO_DROPOUT,
    assert_outcomes_close,
    count_marked_accumulators,
    make_small,
    mark_accumulators,
    outcome,
)
from fixtures.molecules import both
from fixtures.seeds import mostly_slow
from fixtures.triton import use_triton
from msde.errors import MsdeError
from msde.model import Noise
from msde.ops import dispatch, triton
from msde.training.cuda_graphs import GraphedMoleculeSDE


def test_operators_that_wait_are_noticed():
    with HostWaits() as waits:
        x = torch.arange(3)
        x[x > 0], x.max().item(), torch.tensor([1]), x.repeat_interleave(x), x.tolist()
        bool(x.any())
    expected = {"index", "_local_scalar_dense", "lift_fresh", "repeat_interleave", "tolist"}
    assert expected | {"__bool__"} <= {found.split()[0] for found in waits.found}


class Unlaunched:
    """A kernel that leaves its results as they are: no step may depend on them."""

    def __getitem__(self, grid):
        return lambda *arguments, **named: None


class Kernels:
    """A module of such kernels."""

    def __getattr__(self, name):
        return Unlaunched()


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_makes_the_host_wait_for_a_gpu(kind, gpu, records, monkeypatch):
    use_triton(gpu, monkeypatch)
    monkeypatch.setattr(triton, "kernels", lambda op: Kernels())
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", "triton")
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    model = make_small(kind, *NO_DROPOUT).train()  # only a CPU's dropout takes a seed to the host
    for batch in both(records):
        with HostWaits() as waits:
            loss, _ = model(batch)
            loss.backward()
        assert waits.found == []


def one_hot(codes, sizes):
    """torch's own looks at the codes on a CPU, and not on a GPU."""
    return (codes.unsqueeze(-1) == torch.arange(sizes)).long()


class Graphs:
    """Computes again into the memory of the first results, as CUDA graphs do."""

    def __init__(self):
        self.captured = 0

    def __call__(self, run):
        results = run()
        self.captured += 1

        def replay():
            with torch.enable_grad():
                again = run()
            for place, result in zip(results, again, strict=True):
                place.copy_(result)

        return results, replay


def graphed_and_plain(kind, capture=None):
    """Two models of the same weights, in training mode."""
    plain = make_small(kind, *NO_DROPOUT)
    graphed = GraphedMoleculeSDE(plain.config, capture)
    graphed.load_state_dict(plain.state_dict())
    return graphed.train(), plain.train()


@pytest.mark.parametrize("kind", mostly_slow(KINDS, FEW_KINDS))
def test_a_graph_holds_for_other_molecules_of_its_shape(kind, records):
    graphs = Graphs()
    model, plain = graphed_and_plain(kind, graphs)
    for molecules in (records, records, records[::-1], records[3:] + records[:3]):
        _, full = both(molecules)
        found, expected = outcome(model, full), outcome(plain, full)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert graphs.captured == 2  # forward and backward


def test_replays_of_several_batches_do_not_share_memory(records):
    """As in a step of several slots, one of which is not replayed."""
    model, plain = graphed_and_plain("paper", Graphs())
    slots = [both(molecules)[1] for molecules in (records, records[::-1], records[:4], records)]
    outcome(model, slots[0]), outcome(plain, slots[0])
    kept = []
    for one in (model, plain):
        one.zero_grad()
        found = []
        for batch in slots:
            found.append(one(batch))
            found[-1][0].backward()
        kept.append([terms["total"] for _, terms in found] + [p.grad for p in one.parameters()])
    for one, other in zip(*kept, strict=True):
        assert one is other or torch.equal(one, other)


def test_graphs_share_the_memory_of_their_gradients(records):
    model, _ = graphed_and_plain("paper", Graphs())
    for molecules in (records, records * 8):
        for _ in range(2):
            outcome(model, both(molecules)[1])
    one, other = model._graphs.values()
    assert one._flat.data_ptr() == other._flat.data_ptr()


def test_under_autocast_a_replay_has_the_gradients_of_a_step_without_graphs(records):
    model, plain = graphed_and_plain("base", Graphs())
    _, full = both(records)
    for _ in range(3):
        for one in (model, plain):
            one.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = one(full)
            loss.backward()
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.grad is not None)


def test_no_node_of_autograd_outlives_the_capture(records):
    """Later steps would use it, on the stream that it was made on."""
    capture = Graphs()

    def marking(run):
        captured = capture(run)
        mark_accumulators(model)  # of the forward pass, which is captured first
        return captured

    model, _ = graphed_and_plain("paper", marking)
    for _ in range(2):
        outcome(model, both(records)[1])
    assert capture.captured == 2
    assert not count_marked_accumulators(model)


def test_a_failed_capture_ends_the_run_with_one_line(records):
    """torch leaves the process in the middle of it."""

    def fail(run):
        try:
            raise RuntimeError("no graph\nmore")
        finally:
            raise RuntimeError("a stream that is capturing")

    model, _ = graphed_and_plain("paper", fail)
    _, full = both(records)
    outcome(model, full)
    line = r"^a step cannot be captured .*: no graph; resume with run.cuda_graphs=false$"
    with pytest.raises(MsdeError, match=line):
        outcome(model, full)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_same_as_plain_steps(records):
    model, plain = (model.cuda() for model in graphed_and_plain("paper"))
    for molecules in (records, records, records[::-1]):
        full = both(molecules)[1].to("cuda")
        # Sums with atomics differ from one pass to the next.
        assert_outcomes_close(outcome(model, full), outcome(plain, full), 1e-4)


def test_every_field_of_the_noise_is_a_tensor(records):
    """A graph copies them all by name, as it copies the tensors of the batch."""
    _, full = both(records)
    noise = make_small("paper").draw_noise(full)
    assert len(vars(noise)) == len(Noise.__dataclass_fields__)
    assert all(isinstance(x, torch.Tensor) for x in [*vars(noise).values()])
