"""The encoders, the score networks, and the joint model of both."""

from msde.model.molecule_sde import NAMES_OF_TIMES, MoleculeSDE, adjacency, names_of_terms
from msde.model.noise import Noise

__all__ = ["NAMES_OF_TIMES", "MoleculeSDE", "Noise", "adjacency", "names_of_terms"]
