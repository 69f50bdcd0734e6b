"""The encoders, the score networks, and the joint model of both."""

from msde.model.molecule_sde import MoleculeSDE, adjacency, names_of_terms
from msde.model.noise import Noise

__all__ = ["MoleculeSDE", "Noise", "adjacency", "names_of_terms"]
