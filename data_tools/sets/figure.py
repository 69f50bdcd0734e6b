"""The picture of a data set that `describe` draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from msde.monitor.pictures import BLUE, INK, new_figure, save_figure

from ..pipeline.summary import FAR, Statistics

# A hue for each of the most common kinds of bonds, distinguishable with colour blindness.
HUES = ("#3b6ea8", "#d1762b", "#4f9d69", "#b3446c", "#7b6cb0", "#8a8f98")
PANELS = 9  # at most; labels take what the others leave


def draw(stats: Statistics, title: str, output: Path) -> None:
    """Draw numbers of atoms, elements, bond lengths, distances and labels to a PNG file.

    Raises:
        MsdeError: matplotlib is not installed.
    """
    painters = [_draw_atoms, _draw_elements]
    if len(stats.distances):
        painters += [_draw_bonds, _draw_distances]
    labels = stats.manifest["labels"][: PANELS - len(painters)]
    columns = 3
    rows = -(-(len(painters) + len(labels)) // columns)
    figure = new_figure(11, 2.9 * rows + 0.5)
    import matplotlib

    with matplotlib.rc_context({"font.size": 9, "axes.edgecolor": INK, "text.color": INK}):
        axes = figure.subplots(rows, columns).ravel()
        for axis, paint in zip(axes, painters, strict=False):
            paint(axis, stats)
        free = axes[len(painters) :]
        for axis, label, y in zip(free, labels, stats.labels.T, strict=False):
            _draw_label(axis, label, y)
        for axis in free[len(labels) :]:
            axis.set_axis_off()
        of_all = f" ({stats.sampled:,} sampled)" if stats.sampled < _total(stats) else ""
        figure.suptitle(f"{title}: {_total(stats):,} molecules{of_all}", fontweight="bold")
        save_figure(figure, output)


def _total(stats: Statistics) -> int:
    return stats.manifest["molecules"]


def _label_axes(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_atoms(axis: Any, stats: Statistics) -> None:
    atoms = stats.counts["atoms"]
    step = max(1, -(-int(np.ptp(atoms)) // 60))
    bins = np.arange(atoms.min(), atoms.max() + step + 1, step) - 0.5
    axis.hist(atoms, bins, color=BLUE)
    middle, half = (bins[0] + bins[-1]) / 2, max(3.5, (bins[-1] - bins[0]) / 2 * 1.05)
    axis.set_xlim(middle - half, middle + half)
    axis.axvline(atoms.mean(), color=INK, linewidth=0.8, linestyle="--")
    _label_axes(axis, f"Atoms, mean {atoms.mean():.1f}", "atoms of a molecule", "molecules")


def _draw_elements(axis: Any, stats: Statistics) -> None:
    names = list(stats.elements)[:12]
    axis.bar(names, [stats.elements[name] for name in names], color=BLUE)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.8)
    _label_axes(axis, f"Elements, {len(stats.elements)}", "", "atoms")


def _draw_bonds(axis: Any, stats: Statistics) -> None:
    chosen = list(stats.bond_lengths.items())[: len(HUES)]
    low = min((np.quantile(length, 0.001) for _, length in chosen), default=1.0)
    high = max((np.quantile(length, 0.999) for _, length in chosen), default=2.0)
    bins = np.linspace(low - 0.02, high + 0.02, 120)
    for (name, length), hue in zip(chosen, HUES, strict=False):
        axis.hist(length, bins, color=hue, alpha=0.75, label=name)
    axis.legend(frameon=False, fontsize=8)
    _label_axes(axis, "Bond lengths", "A", "bonds")


def _draw_distances(axis: Any, stats: Statistics) -> None:
    axis.hist(stats.distances, 100, color=BLUE)
    axis.axvline(FAR, color=INK, linewidth=0.8, linestyle="--")
    _label_axes(axis, f"Distances, {stats.far_share:.1%} above {FAR:g} A", "A", "pairs of atoms")


def _draw_label(axis: Any, label: dict[str, str], y: np.ndarray) -> None:
    known = y[np.isfinite(y)]
    name = label["name"] if len(label["name"]) <= 36 else f"{label['name'][:35]}..."
    if not len(known):
        axis.set_axis_off()
        axis.set_title(f"{name}: missing everywhere", loc="left", fontsize=10)
        return
    if len(np.unique(known)) <= 2:  # classes
        values, counts = np.unique(known, return_counts=True)
        axis.bar([f"{value:g}" for value in values], counts, color=BLUE, width=0.6)
    else:
        # A few outliers would leave one bar of the rest.
        low, high = np.quantile(known, [0.002, 0.998])
        axis.hist(known, np.linspace(low, high, 61) if high > low else 10, color=BLUE)
    missing = len(y) - len(known)
    _label_axes(axis, name, label["unit"], "molecules")
    if missing:
        axis.text(
            0.98, 0.95, f"{missing / len(y):.0%} missing", transform=axis.transAxes, ha="right",
            va="top", color=INK, fontsize=8,
        )  # fmt: skip
