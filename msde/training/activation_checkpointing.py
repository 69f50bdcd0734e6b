"""Activation checkpointing: hidden layers are recomputed in the backward pass, not stored."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from msde.model.encoders.gin import GINLayer
from msde.model.encoders.painn import Message, Mixing
from msde.model.encoders.schnet import Interaction
from msde.model.layers import MLP
from msde.model.score.all_pairs import Moves, PairBlock
from msde.model.score.bonds import BondBlock
from msde.model.score.conformer import EquivariantReadout, TopologyEdges, TransformerLayer
from msde.model.score.topology import ChannelAttention, GraphConvolution

KINDS = (
    GINLayer,
    Interaction,
    Message,
    Mixing,
    PairBlock,
    Moves,
    BondBlock,
    TopologyEdges,
    TransformerLayer,
    EquivariantReadout,
    ChannelAttention,
    GraphConvolution,
    MLP,
)


def checkpoint_activations(module: nn.Module) -> None:
    """Make the layers in a module store their inputs only, and compute the rest twice.

    The second time, dropout draws the same values and BatchNorm leaves its running statistics.
    """
    if isinstance(module, KINDS):
        forward = module.forward
        module.forward = functools.partial(checkpoint, forward, use_reentrant=False)  # type: ignore
        return
    for child in module.children():
        checkpoint_activations(child)
