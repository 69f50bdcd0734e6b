"""msde: joint pretraining of 2D and 3D molecular encoders with score-based diffusion models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msde.files import shipped_checkpoint

if TYPE_CHECKING:
    import torch

    from msde.config.schema import Readout
    from msde.inference.pretrained import Pretrained

__version__ = "0.1.0"
__all__ = ["load", "shipped_checkpoint"]


def load(
    folder: Path | str | None = None,
    device: torch.device | str | None = None,
    readout: Readout = "pretrained",
) -> Pretrained:
    """Load a pretrained model, by default the one that comes with msde.

    See `msde.inference.pretrained.load`.
    """
    from msde.inference import (
        pretrained,  # torch and rdkit take seconds to import, and not all need them
    )

    return pretrained.load(folder, device, readout)
