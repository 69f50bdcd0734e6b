"""Encoders: a MoleculeBatch to representations of atoms, (num_atoms, width)."""

from msde.model.encoders.gin import GIN
from msde.model.encoders.painn import PaiNN
from msde.model.encoders.schnet import SchNet

__all__ = ["GIN", "PaiNN", "SchNet"]
