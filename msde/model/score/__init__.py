"""Score networks: they predict the noise in positions or topology, given the other view."""

from msde.model.score.conformer import ConformerScore
from msde.model.score.topology import TopologyScore

__all__ = ["ConformerScore", "TopologyScore"]
