"""Score networks: they predict the noise in positions or topology, given the other view."""

from msde.config import ConformerScoreConfig
from msde.model.score.all_pairs import AllPairsScore
from msde.model.score.conformer import ConformerScore
from msde.model.score.topology import TopologyScore

__all__ = ["AllPairsScore", "ConformerScore", "TopologyScore", "make_conformer_score"]


def make_conformer_score(
    input_dim: int, config: ConformerScoreConfig
) -> ConformerScore | AllPairsScore:
    """Build the score network of positions that a configuration names."""
    network = AllPairsScore if config.edges == "all_pairs" else ConformerScore
    return network(input_dim, config)
