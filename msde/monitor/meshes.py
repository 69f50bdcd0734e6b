"""Molecules as coloured triangles: a sphere for each atom, two half cylinders for each bond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msde.monitor.pictures import COLOURS, GREY, OTHER_ELEMENT, Structure

ATOM, HYDROGEN, BOND, STICK = 0.36, 0.22, 0.13, 0.07  # radii, A; STICK is that of references
SIDES = 10  # of a cylinder
LATITUDES = np.linspace(0, np.pi, 6)  # of the rings of a sphere, from pole to pole
# How TensorBoard looks at the bodies, which are centred and turned flat; lengths in A.
CAMERA = {
    "camera": {"cls": "PerspectiveCamera", "fov": 45, "position": [0, 0, 14]},
    "lights": [
        {"cls": "AmbientLight", "color": "#ffffff", "intensity": 0.75},
        {"cls": "DirectionalLight", "color": "#ffffff", "intensity": 0.55, "position": [3, 5, 9]},
    ],
    "material": {"cls": "MeshStandardMaterial", "roughness": 0.6, "metalness": 0},
}


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour for each corner."""

    vertices: np.ndarray  # (num_vertices, 3) float32, A
    colours: np.ndarray  # (num_vertices, 3) uint8, red, green, blue
    faces: np.ndarray  # (num_faces, 3) int32, vertices counter-clockwise from outside


def molecule_mesh(structure: Structure, reference: Structure | None = None) -> Mesh:
    """Return a molecule as balls and sticks, over a reference in thin grey sticks.

    Args:
        reference: superposed on the structure.
    """
    seen = structure if reference is None else reference
    centre = seen.pos.mean(axis=0)
    axes = np.linalg.svd(seen.pos - centre, full_matrices=True)[2]
    axes[2] *= np.linalg.det(axes)  # a rotation: no mirror image
    parts = _balls_and_sticks(structure, (structure.pos - centre) @ axes.T)
    if reference is not None:
        parts += _sticks(reference, (reference.pos - centre) @ axes.T)
    vertices, faces, colours = zip(*parts, strict=True)
    firsts = np.cumsum([0, *map(len, vertices)])[:-1]
    return Mesh(
        np.concatenate(vertices).astype(np.float32),
        np.concatenate([_rgb(c, len(v)) for c, v in zip(colours, vertices, strict=True)]),
        np.concatenate([f + n for f, n in zip(faces, firsts, strict=True)]).astype(np.int32),
    )


Part = tuple[np.ndarray, np.ndarray, str]  # vertices, faces and colour


def _balls_and_sticks(structure: Structure, pos: np.ndarray) -> list[Part]:
    colours = [COLOURS.get(z, OTHER_ELEMENT) for z in structure.numbers.tolist()]
    unit, faces = _SPHERE
    parts: list[Part] = []
    for z, colour, at in zip(structure.numbers.tolist(), colours, pos, strict=True):
        parts.append((at + (HYDROGEN if z == 1 else ATOM) * unit, faces, colour))
    for i, j in structure.bonds.tolist():
        middle = (pos[i] + pos[j]) / 2
        for end in (i, j):
            parts.append((*_cylinder(pos[end], middle, BOND), colours[end]))
    return parts


def _sticks(structure: Structure, pos: np.ndarray) -> list[Part]:
    return [(*_cylinder(pos[i], pos[j], STICK), GREY) for i, j in structure.bonds.tolist()]


def _rgb(colour: str, count: int) -> np.ndarray:
    return np.tile(np.frombuffer(bytes.fromhex(colour[1:]), np.uint8), (count, 1))


def _cylinder(start: np.ndarray, end: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and faces of a cylinder without its ends."""
    axis = end - start
    across = np.cross(np.eye(3)[np.abs(axis).argmin()], axis)
    basis = np.stack([across, np.cross(axis, across), axis])  # (3, 3), right-handed
    lengths = np.linalg.norm(basis, axis=1, keepdims=True).clip(1e-9)  # atoms may coincide
    basis[:2] *= radius / lengths[:2]
    unit, faces = _TUBE
    return start + unit @ basis, faces


def _revolve(radius: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and faces of a profile that is turned about the third axis.

    Args:
        radius: (rings,) of each ring of SIDES vertices, the lowest first.
        height: (rings,).
    """
    turn = 2 * np.pi * np.arange(SIDES) / SIDES
    x, y = np.outer(radius, np.cos(turn)), np.outer(radius, np.sin(turn))  # (rings, SIDES)
    vertices = np.stack([x, y, np.broadcast_to(height[:, None], x.shape)], axis=2).reshape(-1, 3)
    number = np.arange(len(vertices)).reshape(-1, SIDES)
    right = np.roll(number, -1, axis=1)
    a, b, c, d = (n.ravel() for n in (number[:-1], right[:-1], right[1:], number[1:]))
    return vertices, np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


_SPHERE = _revolve(np.sin(LATITUDES), -np.cos(LATITUDES))
_TUBE = _revolve(np.ones(2), np.arange(2.0))
