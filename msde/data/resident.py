"""Molecules that stay on the device, for data sets that fit there: about 0.5 kB a molecule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from msde.data import codec
from msde.data.mixture import BLOCKS_AT_ONCE, Mixture
from msde.data.packed import PackedMolecules
from msde.data.ragged import offsets, repeat
from msde.data.shards import BLOCK_MOLECULES
from msde.errors import MsdeError

_ROWS = {name: codec.row_counts(name) for name in PackedMolecules.COLUMNS}


class ResidentMolecules:
    """All molecules of a data set as columns on one device.

    Raises:
        MsdeError: they do not fit.
    """

    def __init__(self, data: Mixture, device: torch.device) -> None:
        """Read, check and copy all blocks."""
        parts: dict[str, list[Tensor]] = {name: [] for name in ("uid", *PackedMolecules.COLUMNS)}
        counts: dict[str, list[np.ndarray]] = {name: [] for name in PackedMolecules.COUNTS}
        try:
            for first in range(0, len(data), BLOCKS_AT_ONCE * BLOCK_MOLECULES):
                last = min(first + BLOCKS_AT_ONCE * BLOCK_MOLECULES, len(data))
                columns = data.fetch(np.arange(first, last))
                packed = PackedMolecules.from_columns(columns)
                for name, tensors in parts.items():
                    tensors.append(getattr(packed, name).to(device))
                for name, arrays in counts.items():
                    arrays.append(packed.counts[name].numpy())
            # Atom numbers of two bytes, where a block has them, make one column of them.
            self._columns = {name: torch.cat(_alike(ts)) for name, ts in parts.items()}
        except torch.OutOfMemoryError as error:
            raise MsdeError(
                f"the {len(data)} molecules do not fit on {device}; train without data.resident"
            ) from error
        self._counts = {name: np.concatenate(arrays) for name, arrays in counts.items()}
        device_counts = {n: torch.from_numpy(c).to(device) for n, c in self._counts.items()}
        self._starts = {}
        for names in set(_ROWS.values()):
            rows = torch.stack([device_counts[name] for name in names]).prod(0)
            self._starts[names] = offsets(rows)
        self._device_counts = device_counts

    def take(self, numbers: np.ndarray) -> PackedMolecules:
        """Return some molecules, gathered on the device without a sync."""
        host = {name: counts[numbers] for name, counts in self._counts.items()}
        device = self._columns["uid"].device
        wanted = torch.from_numpy(numbers).to(device, non_blocking=True)
        rows: dict[tuple[str, ...], Tensor] = {}
        for names, starts in self._starts.items():
            total = int(np.prod([host[name] for name in names], axis=0).sum())
            first = starts[wanted]
            own = starts[wanted + 1] - first
            shift = first - (own.cumsum(0) - own)
            rows[names] = torch.arange(total, device=device) + repeat(shift, own, total)
        gathered: dict[str, Any] = {n: self._columns[n][rows[names]] for n, names in _ROWS.items()}
        return PackedMolecules(
            counts={name: counts[wanted] for name, counts in self._device_counts.items()},
            uid=self._columns["uid"][wanted],
            **PackedMolecules.sizes(host),
            **gathered,
        )


def _alike(tensors: list[Tensor]) -> list[Tensor]:
    """Give all tensors one dtype; two-byte numbers become four-byte ones, which devices index."""
    if any(t.dtype == torch.uint16 for t in tensors):
        return [t.to(torch.int32) for t in tensors]
    return tensors
