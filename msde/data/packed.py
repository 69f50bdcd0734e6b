"""Molecules as packed columns: the compact form that a batch is built from, a tenth of its size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msde import philox
from msde.data.codec import MoleculeColumns


@dataclass(frozen=True)
class PackedMolecules:
    """Counts and columns of some molecules as tensors on one device; see `MoleculeBatch.expand`."""

    uid: Tensor  # (num_graphs,) int64, the bits of the molecules' 64-bit ids
    num_atoms: Tensor  # (num_graphs,) int64, and so the next three
    num_bonds: Tensor
    num_extended: Tensor
    num_conformers: Tensor
    z: Tensor  # this and the next seven: columns of `codec.MoleculeColumns`
    x: Tensor
    cip: Tensor
    bond_index: Tensor
    bond_attr: Tensor
    extended_source: Tensor
    extended_degree: Tensor
    pos: Tensor
    totals: tuple[int, int, int, int]  # atoms, bonds, extended edges and pairs of all molecules
    max_num_atoms: int  # atoms of the largest molecule
    several_conformers: bool  # of at least one molecule
    num_padding: int = 0  # molecules at the end that are padding, see `padding.pad`

    COUNTS = ("num_atoms", "num_bonds", "num_extended", "num_conformers")
    COLUMNS = (
        "z", "x", "cip", "bond_index", "bond_attr", "extended_source", "extended_degree", "pos"
    )  # fmt: skip
    TENSORS = ("uid", *COUNTS, *COLUMNS)

    @classmethod
    def from_columns(cls, columns: MoleculeColumns) -> PackedMolecules:
        """Make tensors of columns; they share their memory where they can."""
        counts = {name: getattr(columns, name).astype(np.int64) for name in cls.COUNTS}
        tensors: dict[str, Any] = {
            name: _tensor(array)
            for name, array in (counts | {n: getattr(columns, n) for n in cls.COLUMNS}).items()
        }
        return cls(uid=philox.signed(columns.uid), **tensors, **cls.sizes(counts))

    @staticmethod
    def sizes(counts: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the fields that are plain numbers, from the counts of the molecules."""
        atoms = counts["num_atoms"]
        pairs = int((atoms * (atoms - 1) // 2).sum())
        bonds, extended = int(counts["num_bonds"].sum()), int(counts["num_extended"].sum())
        return {
            "totals": (int(atoms.sum()), bonds, extended, pairs),
            "max_num_atoms": int(atoms.max()),
            "several_conformers": bool((counts["num_conformers"] != 1).any()),
        }

    def to(self, device: torch.device) -> PackedMolecules:
        """Return the molecules on `device`; a copy to a GPU does not block the host."""
        pin = self.uid.is_cpu and device.type == "cuda"  # only pinned memory is copied that way
        moved: dict[str, Any] = {}
        for name in self.TENSORS:
            tensor = getattr(self, name)
            moved[name] = (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)
        return dataclasses.replace(self, **moved)


def _tensor(array: np.ndarray) -> Tensor:
    """Return a tensor of an array; 16-bit integers take 32 bits, for GPUs do not index uint16."""
    if array.dtype == np.uint16:
        array = array.astype(np.int32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
