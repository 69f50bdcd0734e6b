"""Groups of different sizes, one after another: their offsets, their members and their pairs.

All functions are given the totals, so that a GPU's host need not wait for them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def offsets(counts: Tensor) -> Tensor:
    """Return where each of consecutive groups starts and where the last one ends, (groups + 1,)."""
    ends = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=ends[1:])
    return ends


def numbers(counts: Tensor, total: int) -> Tensor:
    """Return the group number of each member of consecutive groups, (total,)."""
    return torch.repeat_interleave(counts, output_size=total)


def repeat(values: Tensor, counts: Tensor, total: int) -> Tensor:
    """Repeat each value `counts` times, (total,)."""
    return values.repeat_interleave(counts, output_size=total)


def complete_pairs(atoms: Tensor, num_atoms: int, num_pairs: int) -> Tensor:
    """Return all pairs i < j of atoms of the same molecule, (2, num_pairs), in lexicographic order.

    Args:
        atoms: (num_graphs,) number of atoms of each molecule.
        num_atoms: total of all molecules, and so `num_pairs`.
    """
    at = torch.arange(num_atoms, device=atoms.device)
    ends = repeat(atoms.cumsum(0), atoms, num_atoms)  # (num_atoms,)
    later = ends - at - 1  # (num_atoms,) partners that come after the atom
    before = later.cumsum(0) - later  # (num_atoms,) pairs of the atoms that come before
    pairs = torch.empty(2, num_pairs, dtype=torch.int64, device=atoms.device)
    pairs[0] = numbers(later, num_pairs)
    torch.arange(num_pairs, out=pairs[1], device=pairs.device)
    pairs[1] -= repeat(before - at - 1, later, num_pairs)
    return pairs


def complete_edges(atoms: Tensor, num_atoms: int, num_edges: int) -> Tensor:
    """Return all directed edges between atoms of the same molecule, (2, num_edges).

    Row 0 is the source; they are sorted by target and then source.

    Args:
        atoms: (num_graphs,) number of atoms of each molecule.
        num_atoms: total of all molecules, and so `num_edges`.
    """
    others = repeat(atoms - 1, atoms, num_atoms)  # (num_atoms,) edges into each atom
    at = torch.arange(num_atoms, device=atoms.device)
    first = repeat(atoms.cumsum(0) - atoms, atoms, num_atoms)  # of the atom's molecule
    target = numbers(others, num_edges)
    source = torch.arange(num_edges, device=atoms.device)
    source -= repeat(others.cumsum(0) - others - first, others, num_edges)
    source += source >= repeat(at, others, num_edges)  # an atom has no edge to itself
    return torch.stack([source, target])
