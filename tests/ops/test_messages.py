"""Messages over edges."""

import torch
from torch import nn

from fixtures.ops import codes_of, edges_of
from msde.model.encoders.gin import GINLayer


class Unchanged(nn.Module):
    """Takes the place of a BatchNorm."""

    def forward(self, x, num_valid):
        return x


def test_messages_under_autocast_are_made_and_summed_in_float32(way):
    torch.manual_seed(0)
    edges, layer = edges_of([3, 1, 14, 18, 9, 2]), GINLayer(40)
    layer.mlp = nn.Sequential(nn.Identity(), Unchanged(), nn.Identity())
    codes, h = codes_of(edges), torch.randn(47, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(h, edges, codes)
    assert found.dtype == torch.float32
    assert torch.allclose(found, layer(h.float(), edges, codes))
