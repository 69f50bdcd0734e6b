import pytest
import torch

from msde import ops
from msde.monitor.flops import FlopsCounter, counting


@pytest.mark.parametrize("way", ["reference", "fused"])
def test_a_linear_layer_counts_two_flops_for_each_weight_and_row(way, monkeypatch):
    monkeypatch.setenv("MSDE_OPS", way)
    x, weight = torch.randn(64, 48, requires_grad=True), torch.randn(32, 48, requires_grad=True)
    with counting() as forward:
        y = ops.linear(x, weight)
    with counting() as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * 64 * 48 * 32
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_the_rate_of_a_run_is_that_of_its_first_forward_pass(small_model, batch):
    counter = FlopsCounter(world_size=2, bfloat16=False)
    assert counter.scalars(100.0) == {}
    with counting() as forward:
        expected, _ = small_model(batch)
    for _ in range(2):
        loss, _ = counter.forward(small_model, batch)
        assert torch.equal(loss, expected)
        rate = counter.scalars(100.0)["throughput/tflops_per_rank"]
        per_molecule = 3 * forward.get_total_flops() / batch.num_graphs
        assert rate == pytest.approx(per_molecule * 100.0 / 2 / 1e12)
