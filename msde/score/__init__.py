"""Score networks: noised positions or noised topology, and a condition, to the noise in them."""

from msde.score.conformer import ConformerScore
from msde.score.topology import TopologyScore

__all__ = ["ConformerScore", "TopologyScore"]
