"""Encoders: a MoleculeBatch to representations of atoms, (num_atoms, width)."""

from msde.encoders.gin import GIN
from msde.encoders.painn import PaiNN
from msde.encoders.schnet import SchNet

__all__ = ["GIN", "PaiNN", "SchNet"]
