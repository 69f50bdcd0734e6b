"""Pictures of structures and curves by matplotlib, as PNG files or in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msde.errors import MsdeError
from msde.files import disk_full_as_error, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, BLUE, INK = "#c3c8ce", "#3b6ea8", "#333a44"
# The usual colours of elements, darker where white paper would hide them.
COLOURS = {1: "#b9bec4", 6: "#4a4f57", 7: "#3557c4", 8: "#d23b2f", 9: "#5fa94a", 15: "#d9822b",
           16: "#c7a51c", 17: "#3f9a3a", 35: "#8a3f22", 53: "#6d3f9a"}  # fmt: skip
OTHER_ELEMENT = "#b04a8f"
ROOM = 1 << 20  # bytes of a picture, at most


@dataclass(frozen=True)
class Structure:
    """Atoms and bonds of one conformer."""

    numbers: np.ndarray  # (num_atoms,) atomic numbers
    pos: np.ndarray  # (num_atoms, 3) A
    bonds: np.ndarray  # (num_bonds, 2)


@dataclass(frozen=True)
class Cell:
    """A structure to draw, over a reference if there is one, which it is superposed on."""

    structure: Structure
    title: str = ""
    reference: Structure | None = None


def has_matplotlib() -> bool:
    """Return whether pictures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes are in inches.

    Raises:
        MsdeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MsdeError("pictures need matplotlib: pip install 'msde[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def save_figure(figure: Figure, output: Path) -> None:
    """Write a figure to a PNG file."""
    with disk_full_as_error(output, ROOM):
        write_atomically(output, lambda path: figure.savefig(path, format="png"))


def draw_structures(cells: Sequence[Cell], columns: int = 5, title: str = "") -> Figure:
    """Draw structures side by side; references are grey, seen along their shortest axis."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    figure = new_figure(2.2 * columns, 2.3 * rows + (0.4 if title else 0))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal")
    for axis, cell in zip(axes, cells, strict=False):
        seen = cell.structure if cell.reference is None else cell.reference
        view = _view(seen.pos)
        if cell.reference is not None:
            _draw_structure(axis, cell.reference, view, GREY)
        _draw_structure(axis, cell.structure, view, None)
        axis.set_title(cell.title, fontsize=8, color=INK)
    if title:
        figure.suptitle(title, fontsize=10, color=INK, fontweight="bold")
    return figure


def _view(pos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and the three principal axes of positions, the longest first, (3, 3)."""
    centre = pos.mean(axis=0)
    return centre, np.linalg.svd(pos - centre, full_matrices=True)[2]


def _draw_structure(
    axis: Axes, structure: Structure, view: tuple[np.ndarray, np.ndarray], colour: str | None
) -> None:
    """Draw bonds and atoms, in one colour or in those of the elements."""
    from matplotlib.collections import LineCollection

    centre, axes = view
    flat = (structure.pos - centre) @ axes[:2].T  # (num_atoms, 2)
    colours = np.array([colour or COLOURS.get(z, OTHER_ELEMENT) for z in structure.numbers])
    first, second = structure.bonds.reshape(-1, 2).T
    middle = (flat[first] + flat[second]) / 2
    width = 1.4 if colour is None else 2.6
    for end in (first, second):
        lines = list(np.stack([flat[end], middle], axis=1))  # (2, 2) each
        axis.add_collection(LineCollection(lines, colors=colours[end], linewidths=width))
    axis.scatter(flat[:, 0], flat[:, 1], s=14 if colour is None else 24, c=colours, zorder=2)
    axis.autoscale_view()


def draw_curves(
    x: np.ndarray, curves: Mapping[str, np.ndarray], x_label: str, y_label: str
) -> Figure:
    """Draw curves; both axes are logarithmic."""
    figure = new_figure(5, 3.4)
    axis: Any = figure.subplots()
    for name, y in curves.items():
        axis.plot(x, y, marker="o", markersize=3, linewidth=1.2, label=name)
    axis.set_xscale("log")
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_yscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure
