"""msde: joint pretraining of 2D and 3D molecular encoders with score-based diffusion models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from msde.inference.pretrained import Pretrained

__version__ = "0.1.0"
__all__ = ["load", "shipped_checkpoint"]


def load(folder: Path | str | None = None, device: torch.device | str | None = None) -> Pretrained:
    """Load a pretrained model, by default the one that comes with msde.

    See `msde.inference.pretrained.load`.
    """
    from msde.inference import (
        pretrained,  # torch and rdkit take seconds to import, and not all need them
    )

    return pretrained.load(folder, device)


def shipped_checkpoint(name: Literal["base", "conformers", "bonds"] = "base") -> Path:
    """Return the folder of weights that come with msde; its README.md is the model card.

    Args:
        name: `base` has the encoders, the others sample conformers and find bonds.
    """
    return Path(__file__).parent / "shipped" / name
