"""The frames of edges: coordinates of the end points in them, and means of vectors along them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from msde.ops import dispatch, triton
from msde.ops.cpp import call
from msde.ops.graphs import Edges
from msde.ops.segments import segment_mean

EPSILON = 1e-6  # added to every norm that divides, as in the published frames
EDGES_OF_PROGRAM, EDGES_OF_ATOM = 128, 16  # in Triton


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
    """Return frames and coordinates of all edges.

    Args:
        pos: (num_atoms, 3), A; where it needs a gradient plain torch computes everything.
        edge_index: (2, num_edges) sources and targets.
        collinear: see `edge_frames`.
    """
    if not pos.requires_grad and dispatch.backend(pos) != "torch":
        return EdgeGeometry(*_edge_geometry(pos, edge_index, float(collinear), EPSILON))
    frames = edge_frames(pos, edge_index, collinear)  # (num_edges, 3, 3)
    source, target = (frame_coordinates(frames, pos, atom) for atom in edge_index)
    angle = pseudo_angle(source, target)  # (num_edges, 2)
    distance = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=-1)  # (num_edges,)
    return EdgeGeometry(frames, source[:, ::2], target[:, ::2], angle, distance)


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


def _edge_geometry_cpp(
    pos: Tensor, index: Tensor, collinear: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    edges, index = index.shape[1], index.contiguous()
    found: Any = tuple(pos.new_empty(edges, *shape) for shape in ((3, 3), (2,), (2,), (2,), ()))
    call("edge_geometry", pos, index, edges, collinear, epsilon, *found)
    return found


def _edge_geometry_triton(pos, index, collinear, epsilon):
    edges, index = index.shape[1], index.contiguous()
    found = tuple(pos.new_empty(edges, *shape) for shape in ((3, 3), (2,), (2,), (2,), ()))
    if edges:
        # Fused products would make a x b differ from -(b x a).
        kernel = triton.kernels("frames").edge_geometry[(triton.cdiv(edges, EDGES_OF_PROGRAM),)]
        constants = (collinear, epsilon, EDGES_OF_PROGRAM)
        kernel(pos, index, *found, edges, *constants, enable_fp_fusion=False)
    return found


_edge_geometry = dispatch.register("edge_geometry", _edge_geometry_cpp, _edge_geometry_triton)


def frame_mean(b: Tensor, frames: Tensor, edges: Edges) -> Tensor:
    """Return the mean over the edges into each atom of sum_k b_k frame_k, (num_atoms, 3).

    Args:
        b: (num_edges, 3).
        frames: (num_edges, 3, 3), of the dtype of b.
    """
    if not frames.requires_grad and dispatch.backend(b, frames) != "torch":
        return _frame_mean(b, frames, edges.row_ptr)
    vectors = (b.unsqueeze(-1) * frames).sum(1)  # (num_edges, 3)
    return segment_mean(vectors, edges.index[1], edges.degree)


# Both operators are linear: each is the other's gradient.
def _frame_mean_gradient(needed, g, b, frames, row_ptr):
    return (_frame_mean_grad(g, frames, row_ptr),)


def _frame_mean_grad_gradient(needed, of_b, g, frames, row_ptr):
    return (_frame_mean(of_b, frames, row_ptr),)


def _frame_mean_cpp(b: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    y = b.new_empty(row_ptr.shape[0] - 1, 3)
    call("frame_mean", b, frames, row_ptr, y.shape[0], y)
    return y


def _frame_mean_triton(b, frames, row_ptr):
    y = b.new_empty(len(row_ptr) - 1, 3)
    triton.kernels("frames").frame_mean[(len(y),)](b, frames, row_ptr, y, num_warps=1)
    return y


def _frame_mean_grad_cpp(g: Tensor, frames: Tensor, row_ptr: Tensor) -> Tensor:
    gb = g.new_empty(frames.shape[0], 3)
    call("frame_mean_grad", g, frames, row_ptr, g.shape[0], gb)
    return gb


def _frame_mean_grad_triton(g, frames, row_ptr):
    gb = g.new_empty(len(frames), 3)
    kernel = triton.kernels("frames").frame_mean_grad
    kernel[(len(g),)](g, frames, row_ptr, gb, EDGES_OF_ATOM, num_warps=triton.warps(EDGES_OF_ATOM))
    return gb


_frame_mean = dispatch.register(
    "frame_mean", _frame_mean_cpp, _frame_mean_triton, gradient=_frame_mean_gradient
)
_frame_mean_grad = dispatch.register(
    "frame_mean_grad",
    _frame_mean_grad_cpp,
    _frame_mean_grad_triton,
    gradient=_frame_mean_grad_gradient,
)
