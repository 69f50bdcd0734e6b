"""Attention over edges."""

import torch

from fixtures.ops import cases


def test_attention_keeps_the_weights_for_its_gradient_and_not_the_result(fused):
    case, kept = cases("edge_attention", [3, 4]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = case.op(*case.inputs)
    shapes = [t.shape for t in kept]
    assert shapes.count(out.shape) == 3 and all(t.data_ptr() != out.data_ptr() for t in kept)
