"""Padding: molecules at the end of a batch that bring its sizes to ones that many batches share.

A CUDA graph is replayed for tensors of the recorded sizes only. Padding molecules are molecules
like others, so only statistics and losses have to skip them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msde.data.packed import PackedMolecules

EDGES_PER_ATOM = 16  # of padding atoms, at most: sums over the edges of an atom are sequential


def _unit(size: int) -> int:
    """Return the unit that sizes like this one are rounded up to: 3 to 6 % of it."""
    return max(1, 2 ** (size.bit_length() - 5))


def round_up(size: int) -> int:
    """Return the next size that batches are padded to."""
    unit = _unit(size)
    return -(-size // unit) * unit


def pad(packed: PackedMolecules) -> PackedMolecules:
    """Return the molecules with padding behind them, on the same device.

    The sizes depend on the batch alone. A batch without extended edges is returned as it is: the
    statistics of its edge norms would be empty.
    """
    atoms, bonds, extended, pairs = packed.totals
    to_atoms, to_bonds, to_extended, to_pairs = map(round_up, packed.totals)
    if to_bonds > bonds and to_pairs == pairs:  # the atoms of a bond are a pair
        to_pairs = round_up(pairs + 1)
    largest = -(-packed.max_num_atoms // 4) * 4
    while True:
        molecules = _molecules(to_atoms - atoms, to_pairs - pairs, largest)
        room = EDGES_PER_ATOM * (to_atoms - atoms)
        if molecules is not None and to_extended - extended <= room:
            break
        to_atoms = round_up(to_atoms + 1)
    # Further molecules without atoms round up the number of molecules, too.
    molecules += [0] * (-len(molecules) % _unit(to_atoms))
    padding = _columns(np.array(molecules, np.int64), to_bonds - bonds, to_extended - extended)

    def append(tensor: Tensor, rows: np.ndarray) -> Tensor:
        more = torch.from_numpy(rows).to(tensor.dtype)
        return torch.cat([tensor, more.to(tensor.device, non_blocking=True)])

    padded: dict[str, Any] = {
        name: append(getattr(packed, name), rows) for name, rows in padding.items()
    }
    return dataclasses.replace(
        packed,
        totals=(to_atoms, to_bonds, to_extended, to_pairs),
        max_num_atoms=largest,
        num_padding=len(molecules),
        **padded,
    )


def _molecules(atoms: int, pairs: int, largest: int) -> list[int] | None:
    """Return sizes of molecules that have `atoms` atoms and `pairs` pairs in total, or None."""
    sizes = []
    while pairs:
        size = min(largest, (1 + math.isqrt(1 + 8 * pairs)) // 2)
        sizes.append(size)
        pairs -= size * (size - 1) // 2
    alone = atoms - sum(sizes)
    return sizes + [1] * alone if alone >= 0 else None


def _columns(atoms: np.ndarray, bonds: int, extended: int) -> dict[str, np.ndarray]:
    """Return the tensors of `PackedMolecules` for molecules of `atoms` atoms each.

    Bonds run along chains. Extended edges are loops, each its own reverse; their directions are
    not used.
    """
    chains = atoms > 1
    num_bonds = np.zeros(len(atoms), np.int64)
    num_bonds[chains] = _shares(bonds, int(chains.sum()))
    of_bond = np.repeat(np.arange(len(atoms)), num_bonds)
    link = _within(num_bonds) % (atoms[of_bond] - 1)  # (bonds,)
    degree = _shares(extended, int(atoms.sum()))
    of_atom, atom = np.repeat(np.arange(len(atoms)), atoms), _within(atoms)
    angle = 0.7 * atom  # a helix: no two atoms coincide, and distances differ
    return {
        "num_atoms": atoms,
        "num_bonds": num_bonds,
        "num_extended": np.bincount(of_atom, degree, len(atoms)).astype(np.int64),
        "num_conformers": np.ones(len(atoms), np.int64),
        "uid": np.arange(len(atoms)),
        "z": np.ones(len(atom)),
        "x": np.zeros((len(atom), 9)),
        "cip": np.zeros(len(atom)),
        "bond_index": np.stack([link, link + 1], axis=1),
        "bond_attr": np.zeros((bonds, 3)),
        "extended_source": np.repeat(atom, degree),
        "extended_degree": degree,
        "pos": np.stack([1.5 * np.cos(angle), 1.5 * np.sin(angle), 0.4 * atom + 1], axis=1),
    }


def _shares(total: int, parts: int) -> np.ndarray:
    """Split a number into almost equal parts, (parts,)."""
    return total // max(parts, 1) + (np.arange(parts) < total % max(parts, 1))


def _within(counts: np.ndarray) -> np.ndarray:
    """Number the members of consecutive groups within their group."""
    first = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(first, counts)
