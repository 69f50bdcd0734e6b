"""Geometry as pure tensor functions: pairs of atoms, centring, edge frames, distances."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from msde.ops import segment_mean

EPSILON = 1e-6  # added to every norm that divides, as in the published frames


def complete_pairs(ptr: np.ndarray) -> np.ndarray:
    """Return all pairs i < j of atoms of the same molecule, (2, num_pairs), in lexicographic order.

    Args:
        ptr: (num_graphs + 1,) offsets of the molecules' atoms.
    """
    ends = np.repeat(ptr[1:], np.diff(ptr))  # (num_atoms,) one past the atom's molecule
    later = ends - np.arange(len(ends)) - 1  # (num_atoms,) partners that come after the atom
    first = np.repeat(np.arange(len(ends)), later)  # (num_pairs,)
    starts = np.cumsum(later) - later
    second = np.arange(len(first)) - np.repeat(starts, later) + first + 1
    return np.stack([first, second])


def centre(rows: Tensor, batch: Tensor, counts: Tensor) -> Tensor:
    """Subtract each molecule's mean from its rows, (num_atoms, width).

    Args:
        batch: (num_atoms,) molecule of each row.
        counts: (num_graphs,) rows of each molecule.
    """
    return rows - segment_mean(rows, batch, counts).index_select(0, batch)


def distances(pos: Tensor, pair_index: Tensor) -> Tensor:
    """Return the distance of each pair of atoms, (num_pairs,), A."""
    difference = pos[pair_index[0]] - pos[pair_index[1]]  # (num_pairs, 3)
    return difference.norm(dim=-1)


def edge_frames(pos: Tensor, edge_index: Tensor, collinear: float = 0.0) -> Tensor:
    """Return the frame of each edge i -> j as rows e1, e2, e3, (num_edges, 3, 3).

    e1 points from the target to the source, e2 along the cross product of the two positions, and
    e3 = e1 x e2 (Liu et al. 2023, section 4.1). Under reflection e2 changes sign relative to a
    vector, and so do outputs along it; the positions must be centred for translation invariance.

    Args:
        collinear: sine of the angle between the two positions below which e2 and e3 fade out. At
            zero (published) they keep unit length there, and rounding decides where they point.
    """
    source, target = pos[edge_index[0]], pos[edge_index[1]]  # (num_edges, 3)
    difference = source - target
    e1 = difference / (difference.norm(dim=-1, keepdim=True) + EPSILON)
    cross = torch.linalg.cross(source, target)
    fade = collinear * source.norm(dim=-1, keepdim=True) * target.norm(dim=-1, keepdim=True)
    e2 = cross / (cross.norm(dim=-1, keepdim=True) + fade + EPSILON)
    e3 = torch.linalg.cross(e1, e2)
    return torch.stack([e1, e2, e3], dim=1)


def frame_coordinates(frames: Tensor, pos: Tensor, atom: Tensor) -> Tensor:
    """Return positions in edge frames, the second coordinate as its magnitude, (num_edges, 3).

    Args:
        atom: (num_edges,) the atom whose position each frame takes.
    """
    c = (frames * pos[atom].unsqueeze(1)).sum(-1)  # (num_edges, 3)
    return torch.stack([c[:, 0], c[:, 1].abs(), c[:, 2]], dim=-1)
