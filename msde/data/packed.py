"""What a batch follows from, as tensors: a tenth of its bytes, to be expanded on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msde import philox
from msde.data.codec import MoleculeColumns


@dataclass(frozen=True)
class PackedMolecules:
    """The columns and counts of some molecules."""

    counts: dict[str, Tensor]  # num_atoms, num_bonds, num_extended, num_conformers: int64
    totals: tuple[int, int, int, int]  # atoms, bonds, extended edges and pairs of all molecules
    max_num_atoms: int
    several_conformers: bool
    uid: Tensor  # (num_graphs,) int64
    z: Tensor  # this and what follows: the columns of codec.MoleculeColumns
    x: Tensor
    cip: Tensor
    bond_index: Tensor
    bond_attr: Tensor
    extended_source: Tensor
    extended_degree: Tensor
    pos: Tensor
    num_padding: int = 0  # molecules at the end that only fill a batch up, see `filler`

    COUNTS = ("num_atoms", "num_bonds", "num_extended", "num_conformers")
    COLUMNS = (
        "z", "x", "cip", "bond_index", "bond_attr", "extended_source", "extended_degree", "pos"
    )  # fmt: skip

    @classmethod
    def from_columns(cls, columns: MoleculeColumns) -> PackedMolecules:
        """Take the columns over; tensors share their memory."""
        counts = {name: getattr(columns, name).astype(np.int64) for name in cls.COUNTS}
        tensors: dict[str, Any] = {n: _tensor(getattr(columns, n)) for n in cls.COLUMNS}
        return cls(
            counts={name: torch.from_numpy(count) for name, count in counts.items()},
            uid=philox.signed(columns.uid),
            **cls.sizes(counts),
            **tensors,
        )

    @staticmethod
    def sizes(counts: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the fields that are plain numbers, from the molecules' counts."""
        atoms = counts["num_atoms"]
        pairs = int((atoms * (atoms - 1) // 2).sum())
        bonds, extended = int(counts["num_bonds"].sum()), int(counts["num_extended"].sum())
        return {
            "totals": (int(atoms.sum()), bonds, extended, pairs),
            "max_num_atoms": int(atoms.max()),
            "several_conformers": bool((counts["num_conformers"] != 1).any()),
        }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
