"""Score networks: noised positions or noised topology, and a condition, to the noise in them."""

from msde.model.score.conformer import ConformerScore
from msde.model.score.topology import TopologyScore

__all__ = ["ConformerScore", "TopologyScore"]
