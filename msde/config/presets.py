"""Named configurations, each a list of overrides of the defaults in `schema.py`.

The defaults are the published network and setting, so `paper` has none.
"""

from __future__ import annotations

from typing import Any

# Every correction of the published code; docs/science.md has the reasons. The std of positions
# around a molecule's centre is about 1.7 A (PCQM4Mv2, heavy atoms), that of one-hot atom types and
# of bond types about one.
CORRECTED: dict[str, Any] = {
    "model": {
        "gin": {"chirality": "cip"},
        "painn": {"train_hydrogen": True},
        "conformer": {
            "positions": "centred",
            "time_dim": 64,
            "input_spread": 1.7,
            "sde": {
                "sigma_min": 0.05,
                "sigma_max": 10.0,
                "beta_min": 0.1,
                "beta_max": 20.0,
                "scale": 1.7,
            },
        },
        "topology": {
            "time_dim": 64,
            "input_spread": 1.0,
            "divide_by_std": False,
            "sde": {"sigma_min": 0.1, "sigma_max": 10.0, "beta_min": 0.1, "beta_max": 20.0},
        },
    },
    "loss": {"exclude_true_pairs": True, "times": "antithetic_over_epochs"},
}

BASE: dict[str, Any] = {
    "model": {
        "hidden_dim": 400,
        "schnet": {"num_filters": 200},
        "conformer": {"hidden_dim": 96},
        "topology": {"node_dim": 32, "attention_dim": 32, "hidden_channels": 16},
    }
}
LARGE: dict[str, Any] = {
    "model": {
        "hidden_dim": 1024,
        "gin": {"num_layers": 8},
        "schnet": {"num_interactions": 9, "num_filters": 1024},
        "conformer": {"hidden_dim": 256, "basis_dim": 512},
        "topology": {"node_dim": 64, "attention_dim": 64, "hidden_channels": 32},
    }
}
XL: dict[str, Any] = {
    "model": {
        "hidden_dim": 2944,
        "gin": {"num_layers": 12},
        "schnet": {"num_interactions": 12, "num_filters": 2944},
        "conformer": {"hidden_dim": 512, "basis_dim": 1024},
        "topology": {"node_dim": 128, "attention_dim": 128, "hidden_channels": 32},
    }
}

# 2D -> 3D alone, to generate conformers. GIN does not tell mirror images apart: the score network
# does, and mirrored labels then give the mirrored conformer.
CONFORMERS: dict[str, Any] = {
    "model": {
        "hidden_dim": 128,
        "gin": {"chirality": "unsigned"},
        "conformer": {
            "edges": "all_pairs",
            "hidden_dim": 128,
            "num_blocks": 5,
            "dropout": 0.0,
            "sde": {"sigma_min": 0.02, "sigma_max": 10.0},
        },
    },
    "loss": {"coefficient_contrastive": 0.0, "coefficient_3d_to_2d": 0.0},
    "optim": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 200},
    "run": {"ema_decay": 0.999},
}

# 3D -> 2D alone, to find bonds. The classifier is the network at t = 1, so most times are noisy.
BONDS: dict[str, Any] = {
    "model": {
        "hidden_dim": 64,
        "schnet": {"num_interactions": 3, "num_filters": 64},
        "topology": {
            "bonds": "one_hot",
            "position_noise": 0.25,
            "node_dim": 64,
            "attention_dim": 96,
            "num_layers": 4,
            "sde": {"sigma_min": 0.2, "sigma_max": 20.0},
        },
    },
    "loss": {"coefficient_contrastive": 0.0, "coefficient_2d_to_3d": 0.0},
    "optim": {
        "lr": 2e-3,
        "scale_encoder_3d": 1.0,
        "scale_3d_to_2d": 1.0,
        "schedule": "cosine",
        "warmup_steps": 200,
    },
    "run": {"ema_decay": 0.999},
}

PRESETS: dict[str, list[dict[str, Any]]] = {
    "paper": [],
    "base": [CORRECTED, BASE],
    "large": [CORRECTED, LARGE],
    "xl": [CORRECTED, XL],
    "conformers": [CORRECTED, CONFORMERS],
    "bonds": [CORRECTED, BONDS],
}
