"""Geometry as pure tensor functions: centring, edge frames, distances.

`pos` is (num_atoms, 3) in A, `edge_index` (2, num_edges) with row 0 the source.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from msde import ops

EPSILON = 1e-6  # added to every norm that divides, as in the published frames


def centre(rows: Tensor, batch: Tensor, counts: Tensor) -> Tensor:
    """Subtract each molecule's mean from its rows, (num_atoms, width).

    Args:
        batch: (num_atoms,) molecule of each row.
        counts: (num_graphs,) number of rows of each molecule.
    """
    means = ops.segment_mean(rows, batch, counts)  # (num_graphs, width)
    return rows - means.index_select(0, batch)


def distances(pos: Tensor, pair_index: Tensor) -> Tensor:
    """Return the distance of each pair of atoms, (num_pairs,), A; pair_index is (2, num_pairs)."""
    difference = pos[pair_index[0]] - pos[pair_index[1]]  # (num_pairs, 3)
    return difference.norm(dim=-1)


class EdgeGeometry(NamedTuple):
    """The frame of each edge, and SE(3)-invariant coordinates of its end points in that frame.

    The second coordinate is left out: both end points lie in the plane of e1 and e3.
    """

    frames: Tensor  # (num_edges, 3, 3) see edge_frames
    source: Tensor  # (num_edges, 2) first and third coordinate of the source, A
    target: Tensor  # (num_edges, 2) of the target, A
    angle: Tensor  # (num_edges, 2) sine and cosine of the pseudo-angle between the two
    distance: Tensor  # (num_edges,) A


def edge_geometry(pos: Tensor, edge_index: Tensor, collinear: float = 0.0) -> EdgeGeometry:
    """Return frames and coordinates of all edges; for `collinear` see `edge_frames`."""
    made = ops.edge_geometry(pos, edge_index, collinear, EPSILON)
    if made is not None:
        return EdgeGeometry(*made)
    frames = edge_frames(pos, edge_index, collinear)  # (num_edges, 3, 3)
    source, target = (frame_coordinates(frames, pos, atom) for atom in edge_index)
    angle = pseudo_angle(source, target)  # (num_edges, 2)
    return EdgeGeometry(frames, source[:, ::2], target[:, ::2], angle, distances(pos, edge_index))


def edge_frames(pos: Tensor, edge_index: Tensor, collinear: float = 0.0) -> Tensor:
    """Return the frame of each edge i -> j as rows e1, e2, e3, (num_edges, 3, 3).

    e1 points from the target to the source, e2 along the cross product of the two positions, and
    e3 = e1 x e2 (Liu et al. 2023, section 4.1). e2 is a pseudo-vector: a reflection changes its
    sign relative to that of a vector. Only centred positions give translation invariance.

    Args:
        collinear: sine of the angle between the two positions below which e2 and e3 shrink to zero.
            At zero (published) they keep unit length, and rounding decides on their direction.
    """
    source, target = pos[edge_index[0]], pos[edge_index[1]]  # (num_edges, 3)
    difference = source - target  # (num_edges, 3)
    e1 = difference / (difference.norm(dim=-1, keepdim=True) + EPSILON)
    cross = torch.linalg.cross(source, target)  # (num_edges, 3) A^2
    fade = collinear * source.norm(dim=-1, keepdim=True) * target.norm(dim=-1, keepdim=True)
    e2 = cross / (cross.norm(dim=-1, keepdim=True) + fade + EPSILON)
    e3 = torch.linalg.cross(e1, e2)
    return torch.stack([e1, e2, e3], dim=1)  # (num_edges, 3, 3)


def frame_coordinates(frames: Tensor, pos: Tensor, atom: Tensor) -> Tensor:
    """Return the coordinates of one atom, (num_edges,), in each edge's frame, (num_edges, 3), A.

    The second coordinate is its magnitude, as published.
    """
    c = (frames * pos[atom].unsqueeze(1)).sum(-1)  # (num_edges, 3)
    return torch.stack([c[:, 0], c[:, 1].abs(), c[:, 2]], dim=-1)  # (num_edges, 3)


def pseudo_angle(c_source: Tensor, c_target: Tensor) -> Tensor:
    """Return sine and cosine, (num_edges, 2), of the angle of two triples, (num_edges, 3) each."""
    norms = (c_source.norm(dim=-1) + EPSILON) * (c_target.norm(dim=-1) + EPSILON)  # (num_edges,)
    cos = (c_source * c_target).sum(-1) / norms  # (num_edges,)
    # For a pair collinear with the origin rounding gives |cos| above one, and at one the root's
    # gradient is infinite.
    sin = torch.sqrt((1 - cos.square()).clamp(min=EPSILON**2))
    return torch.stack([sin, cos], dim=-1)  # (num_edges, 2)
