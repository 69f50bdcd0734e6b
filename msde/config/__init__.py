"""The configuration of a run: its schema, presets and files, and DeepSpeed's JSON."""

from msde.config.presets import PRESETS
from msde.config.resolve import from_dict, make_config, nearest, read_json, to_dict
from msde.config.schema import (
    Config,
    ConformerScoreConfig,
    DataConfig,
    GINConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PaiNNConfig,
    RunConfig,
    SchNetConfig,
    SDEConfig,
    TopologyScoreConfig,
    leaves,
)

__all__ = [
    "PRESETS",
    "Config",
    "ConformerScoreConfig",
    "DataConfig",
    "GINConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PaiNNConfig",
    "RunConfig",
    "SDEConfig",
    "SchNetConfig",
    "TopologyScoreConfig",
    "from_dict",
    "leaves",
    "make_config",
    "nearest",
    "read_json",
    "to_dict",
]
