"""What a run has to remember beside weights and optimizer: the part that manifests keep."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class MeanLoss:
    """Moving average of the losses of the steps that were taken."""

    value: float = 0.0
    steps: int = 0


@dataclass
class RunState:
    """Where a run stands."""

    step: int = 0  # optimizer steps so far, skipped ones included
    best_validation: float = math.inf
    validation_due: bool = True  # before the next step
    mean_loss: MeanLoss = field(default_factory=MeanLoss)
    skipped_in_a_row: int = 0  # steps up to the present one

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> RunState:
        """Return the state that a checkpoint's manifest keeps."""
        return cls(
            step=manifest["step"],
            best_validation=manifest["best_validation"] or math.inf,
            validation_due=manifest["validation_due"],
            mean_loss=MeanLoss(**manifest["mean_loss"]),
            skipped_in_a_row=manifest["skipped_in_a_row"],
        )

    def to_manifest(self) -> dict[str, Any]:
        """Return the state as entries of a checkpoint's manifest."""
        best = self.best_validation if math.isfinite(self.best_validation) else None
        return dataclasses.asdict(self) | {"best_validation": best}
