"""Molecules that stay on a device, for data sets that fit there: about 0.5 kB a molecule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from msde.data import codec
from msde.data.mixture import Mixture
from msde.data.packed import PackedMolecules
from msde.data.ragged import offsets, repeat
from msde.data.shards import BLOCK_MOLECULES
from msde.errors import MsdeError

# The counts whose product is the number of a molecule's rows, for each tensor.
_ROWS = {name: codec.row_counts(name) for name in PackedMolecules.TENSORS}
_PART = 16 * BLOCK_MOLECULES  # molecules that are read at a time, with all their conformers


class ResidentMolecules:
    """All molecules of a data set as packed columns on one device."""

    def __init__(self, data: Mixture, device: torch.device) -> None:
        """Read, check and copy all blocks.

        Raises:
            MsdeError: the molecules do not fit on the device.
        """
        parts, counts = [], []
        try:
            for first in range(0, len(data), _PART):
                numbers = np.arange(first, min(first + _PART, len(data)))
                part = PackedMolecules.from_columns(data.fetch(numbers))
                counts.append({name: getattr(part, name).numpy() for name in part.COUNTS})
                parts.append(part.to(device))
            self._tensors = {n: torch.cat([getattr(part, n) for part in parts]) for n in _ROWS}
        except torch.OutOfMemoryError as error:
            raise MsdeError(
                f"the {len(data)} molecules do not fit on {device}; train without data.resident"
            ) from error
        self._counts = {n: np.concatenate([c[n] for c in counts]) for n in PackedMolecules.COUNTS}
        self._starts = {}  # where the rows of each molecule start, (num_molecules + 1,)
        for names in set(_ROWS.values()) - {()}:
            rows = torch.stack([self._tensors[name] for name in names]).prod(0)
            self._starts[names] = offsets(rows)

    def take(self, numbers: np.ndarray) -> PackedMolecules:
        """Return the molecules of these numbers, gathered on the device without a sync."""
        counts = {name: values[numbers] for name, values in self._counts.items()}
        device = self._tensors["uid"].device
        wanted = torch.from_numpy(numbers).to(device, non_blocking=True)
        rows: dict[tuple[str, ...], Tensor] = {(): wanted}
        for names, starts in self._starts.items():
            total = int(np.prod([counts[name] for name in names], axis=0).sum())
            first = starts[wanted]
            own = starts[wanted + 1] - first
            shift = first - (own.cumsum(0) - own)
            rows[names] = torch.arange(total, device=device) + repeat(shift, own, total)
        gathered: dict[str, Any] = {n: self._tensors[n][rows[names]] for n, names in _ROWS.items()}
        return PackedMolecules(**gathered, **PackedMolecules.sizes(counts))
