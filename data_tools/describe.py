"""Describe a data set in numbers and as a picture.

python -m data_tools.describe DIR [--output FILE.png]

Of a large data set evenly spaced blocks are sampled; the first line says how many molecules.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msde.cli import OneLineParser, report_errors
from msde.errors import MsdeError

from .figure import draw
from .pipeline.summary import FAR, Statistics, statistics

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
    if manifest.get("forces_unit"):
        lines += ["", f"forces in {manifest['forces_unit']}"]
    return lines


def _and_more(count: int) -> str:
    return f" and {count - COMMON} more" if count > COMMON else ""


def _moments(values: np.ndarray) -> list[str]:
    if not len(values):
        return ["-"] * 4
    found = (values.mean(), values.std(), values.min(), values.max())
    return [f"{value:.5g}" for value in found]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name[:27]:<28}" + "".join(f"{cell:>12}" for cell in cells)


def main() -> None:
    """Parse the command line, describe and print."""
    parser = OneLineParser(
        prog="data_tools.describe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="also draw a picture")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix != ".png":
        raise MsdeError(f"--output {arguments.output} should end in .png")
    stats = statistics(arguments.root)
    print("\n".join(describe(stats)))
    if arguments.output:
        draw(stats, arguments.root.resolve().name, arguments.output)
        print(f"\n{arguments.output}")


if __name__ == "__main__":
    report_errors(main)
