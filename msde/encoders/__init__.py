"""Encoders: a MoleculeBatch to node representations (num_atoms, hidden_dim)."""

from msde.encoders.gin import GIN
from msde.encoders.painn import PaiNN
from msde.encoders.schnet import SchNet

__all__ = ["GIN", "PaiNN", "SchNet"]
