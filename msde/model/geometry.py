"""Geometry as pure tensor functions: centring, edge frames, distances."""

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
        counts: (num_graphs,) rows of each molecule.
    """
    return rows - ops.segment_mean(rows, batch, counts).index_select(0, batch)


def distances(pos: Tensor, pair_index: Tensor) -> Tensor:
    """Return the distance of each pair of atoms, (num_pairs,), A."""
    difference = pos[pair_index[0]] - pos[pair_index[1]]  # (num_pairs, 3)
    return difference.norm(dim=-1)


class EdgeGeometry(NamedTuple):
    """What a frame says of each edge's end points; rotations and translations leave it as it is,
    but for the frames.

    The second coordinate in a frame is zero but for rounding.
    """

    frames: Tensor  # (num_edges, 3, 3), see edge_frames
    source: Tensor  # (num_edges, 2) first and third coordinate in the frame, A
    target: Tensor  # (num_edges, 2)
    angle: Tensor  # (num_edges, 2) sine and cosine of the angle between them
    distance: Tensor  # (num_edges,) A


def edge_geometry(pos: Tensor, edge_index: Tensor, collinear: float = 0.0) -> EdgeGeometry:
    """Return frames and coordinates of all edges; `collinear` is that of `edge_frames`."""
    made = ops.edge_geometry(pos, edge_index, collinear, EPSILON)
    if made is not None:
        return EdgeGeometry(*made)
    frames = edge_frames(pos, edge_index, collinear)
    source, target = (frame_coordinates(frames, pos, atom) for atom in edge_index)
    angle = pseudo_angle(source, target)
    return EdgeGeometry(frames, source[:, ::2], target[:, ::2], angle, distances(pos, edge_index))


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


def pseudo_angle(c_source: Tensor, c_target: Tensor) -> Tensor:
    """Return the sine and cosine of the angle between two coordinate triples, (num_edges, 2)."""
    norms = (c_source.norm(dim=-1) + EPSILON) * (c_target.norm(dim=-1) + EPSILON)
    cos = (c_source * c_target).sum(-1) / norms
    # Rounding may push |cos| of a pair collinear with the origin past one; at one the root's
    # gradient would be infinite.
    sin = torch.sqrt((1 - cos.square()).clamp(min=EPSILON**2))
    return torch.stack([sin, cos], dim=-1)
