"""A data set in numbers: the lines and the JSON object that `describe` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.data.shards import ShardDataset

from ..pipeline.summary import FAR, Statistics

COMMON = 8  # elements and kinds of bonds that are listed


def describe(stats: Statistics) -> list[str]:
    """Return the lines of the description."""
    manifest, total = stats.manifest, stats.manifest["molecules"]
    source = manifest.get("source", {})
    sampled = "all" if stats.sampled == total else f"{stats.sampled:,}, in evenly spaced blocks,"
    size = sum(shard["bytes"] for shard in manifest["shards"])
    lines = [
        f"{total:,} molecules in {len(manifest['shards'])} shards, {size / 1e6:,.1f} MB; "
        f"{sampled} sampled",
        f"source      {', '.join(source.get('files', [])) or 'several data sets'}"
        f", hydrogens {source.get('hydrogens', 'as they were')}",
        "",
        _row("", ("mean", "min", "median", "max")),
    ]
    for name, values in stats.counts.items():
        summary = [np.mean(values), np.min(values), np.median(values), np.max(values)]
        lines.append(_row(name, [f"{value:,.6g}" for value in summary]))
    lines.append("")
    if len(stats.distances):
        lines.append(f"{stats.far_share:.1%} of pairs of atoms are more than {FAR:g} A apart")
    atoms = sum(stats.elements.values())
    shares = [f"{symbol} {count / atoms:.2%}" for symbol, count in stats.elements.items()]
    lines.append(f"elements    {', '.join(shares[:COMMON])}{_and_more(len(shares))}")
    origins = [f"{count:,} {name}" for name, count in stats.origins.items() if count]
    lines.append(f"not from the source: {', '.join(origins) or 'nothing'}")
    if stats.bond_lengths:
        lines += ["", _row("bonds, A", ("count", "mean", "std", "min", "max"))]
        for name, length in list(stats.bond_lengths.items())[:COMMON]:
            lines.append(_row(name, [f"{len(length):,}", *_moments(length)]))
    if manifest["labels"]:
        lines += ["", _row("labels", ("count", "missing", "mean", "std", "min", "max"))]
        for label, y in zip(manifest["labels"], stats.labels.T, strict=True):
            known = y[np.isfinite(y)]
            unit = f" [{label['unit']}]" if label["unit"] else ""
            counts = [f"{len(known):,}", f"{len(y) - len(known):,}"]
            lines.append(_row(f"{label['name']}{unit}", [*counts, *_moments(known)]))
    if manifest["forces_unit"] is not None:
        lines += ["", f"forces in {manifest['forces_unit'] or 'an unknown unit'}"]
    fields = manifest.get("fields", {"taken": [], "left_out": {}})
    lines += ["", "read from the source:"] * bool(fields["taken"])
    lines += [f"  {role}: {name}" for role, name in fields["taken"]]
    lines += [f"  not read: {name} ({reason})" for name, reason in fields["left_out"].items()]
    return lines


def summary(root: Path) -> dict[str, Any]:
    """Return the facts of a data set that `--json` prints."""
    dataset = ShardDataset(root)
    manifest = dataset.manifest
    counts = dict.fromkeys(("conformers", "forces"), 0)
    if all(counts.keys() <= shard.keys() for shard in manifest["shards"]):
        for name in counts:
            counts[name] = sum(shard[name] for shard in manifest["shards"])
    else:  # an older release counted neither
        for columns in dataset.blocks():
            counts["conformers"] += int(columns.num_conformers.sum())
            counts["forces"] += int((columns.num_forces > 0).sum())
    fields = manifest.get("fields", {"taken": None, "left_out": None})
    return {
        "molecules": manifest["molecules"],
        **counts,
        "forces_unit": manifest["forces_unit"],
        "labels": {label["name"]: label["unit"] for label in manifest["labels"]},
        "taken": fields["taken"],
        "left_out": fields["left_out"],
        **{name: manifest.get(name) for name in ("rejects_by_reason", "notes_by_reason", "origin")},
    }


def _and_more(count: int) -> str:
    return f" and {count - COMMON} more" if count > COMMON else ""


def _moments(values: np.ndarray) -> list[str]:
    if not len(values):
        return ["-"] * 4
    found = (values.mean(), values.std(), values.min(), values.max())
    return [f"{value:.5g}" for value in found]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name[:27]:<28}" + "".join(f"{cell:>12}" for cell in cells)
