"""The encoders, the score networks, and the joint model of both."""

from msde.model.molecule_sde import MoleculeSDE, Noise, adjacency, parameter_groups

__all__ = ["MoleculeSDE", "Noise", "adjacency", "parameter_groups"]
