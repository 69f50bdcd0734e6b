"""Score networks: they predict the noise in positions or topology, given the other view."""

from msde.config import ConformerScoreConfig, TopologyScoreConfig
from msde.model.score.all_pairs import AllPairsScore
from msde.model.score.bonds import BondScore
from msde.model.score.conformer import ConformerScore
from msde.model.score.topology import TopologyScore

__all__ = [
    "AllPairsScore",
    "BondScore",
    "ConformerScore",
    "TopologyScore",
    "make_conformer_score",
    "make_topology_score",
]


def make_conformer_score(
    input_dim: int, config: ConformerScoreConfig
) -> ConformerScore | AllPairsScore:
    """Build the score network of positions that a configuration names."""
    network = AllPairsScore if config.edges == "all_pairs" else ConformerScore
    return network(input_dim, config)


def make_topology_score(input_dim: int, config: TopologyScoreConfig) -> TopologyScore | BondScore:
    """Build the score network of atom types and bonds that a configuration names."""
    network = BondScore if config.bonds == "one_hot" else TopologyScore
    return network(input_dim, config)
