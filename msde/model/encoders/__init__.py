"""Encoders: a MoleculeBatch to representations of its atoms and molecules.

To add a 3D encoder: a subclass of `Encoder` in a file of its own here, its line in ENCODERS_3D, and
its dataclass in `config/schema.py`, as a field of `ModelConfig` under the same name.
"""

from msde.model.encoders.base import Encoder
from msde.model.encoders.gin import GIN
from msde.model.encoders.painn import PaiNN
from msde.model.encoders.schnet import SchNet

# Each is built from the hidden width and its part of the configuration.
ENCODERS_3D: dict[str, type[Encoder]] = {"schnet": SchNet, "painn": PaiNN}

__all__ = ["ENCODERS_3D", "GIN", "Encoder", "PaiNN", "SchNet"]
