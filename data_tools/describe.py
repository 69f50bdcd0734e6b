"""Say what a data set holds, in numbers and as a picture.

python -m data_tools.describe DIR [--output FILE.png]

Of a large data set evenly spaced blocks are looked at; the first line says how much that is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde import codec
from msde.codec import MoleculeColumns
from msde.errors import MsdeError, OneLineParser, report_errors
from msde.molecule import Origin
from msde.shards import ShardDataset

SAMPLE_BLOCKS = 128  # at most: 131,072 molecules, which take a few seconds
FAR = 10.0  # A; the usual cutoff of networks on positions
PAIR_MOLECULES = 4096  # whose pairs of atoms are measured: their number grows with the square
COMMON = 8  # elements and kinds of bonds that are listed


@dataclass(frozen=True)
class Statistics:
    """What a sample of a data set's molecules is like."""

    manifest: dict[str, Any]
    sampled: int
    counts: dict[str, np.ndarray]  # of each molecule: atoms, bonds, pairs, ...
    elements: dict[str, int]  # atoms of each element, the most common first
    bond_lengths: dict[str, np.ndarray]  # A, by the symbols and type of bond, the most common first
    distances: np.ndarray  # A, of pairs of atoms
    labels: np.ndarray  # (sampled, num_labels), NaN where missing
    origins: dict[str, int]  # molecules with each flag

    @property
    def far_share(self) -> float:
        """Share of the pairs of atoms that are further apart than FAR."""
        return float((self.distances > FAR).mean()) if len(self.distances) else 0.0


def statistics(root: Path) -> Statistics:
    """Look at a data set.

    Raises:
        MsdeError: it is missing.
        DataDamaged: a block is not what was written.
    """
    dataset = ShardDataset(root)
    wanted = min(SAMPLE_BLOCKS, dataset.num_blocks)
    blocks = np.unique(np.linspace(0, dataset.num_blocks - 1, wanted).astype(int))
    columns = codec.concatenate([dataset.read_block(int(b)) for b in blocks])
    atoms = columns.num_atoms.astype(np.int64)
    charge = np.zeros(len(columns), np.int64)
    codes = columns.x[:, 3].astype(np.int64) - 5  # of formal_charge; the last stands for others
    np.add.at(charge, np.repeat(np.arange(len(columns)), atoms), codes)
    return Statistics(
        manifest=dataset.manifest,
        sampled=len(columns),
        counts={
            "atoms": atoms,
            "bonds": columns.num_bonds.astype(np.int64),
            "extended edges": columns.num_extended.astype(np.int64),
            "pairs of atoms": atoms * (atoms - 1) // 2,
            "conformers": columns.num_conformers.astype(np.int64),
            "charge": charge,
        },
        elements=_elements(columns),
        bond_lengths=_bond_lengths(columns),
        distances=_distances(columns),
        labels=columns.y,
        origins={
            flag.name.lower().replace("_", " "): int((columns.origin & flag != 0).sum())
            for flag in Origin
            if flag.name and flag.value
        },
    )


def _elements(columns: MoleculeColumns) -> dict[str, int]:
    number, count = np.unique(columns.z, return_counts=True)
    order = np.argsort(-count, kind="stable")
    return {_symbol(int(number[i])): int(count[i]) for i in order}


def _symbol(z: int) -> str:
    return Chem.GetPeriodicTable().GetElementSymbol(z)


def _first_conformers(columns: MoleculeColumns) -> np.ndarray:
    """Return the first conformer of each molecule, (sum num_atoms, 3) A."""
    atoms = columns.num_atoms.astype(np.int64)
    rows = atoms * columns.num_conformers
    start, first = np.cumsum(rows) - rows, np.cumsum(atoms) - atoms
    return columns.pos[np.arange(len(columns.z)) + np.repeat(start - first, atoms)]


def _bond_lengths(columns: MoleculeColumns) -> dict[str, np.ndarray]:
    atoms = columns.num_atoms.astype(np.int64)
    has_geometry = np.repeat(columns.origin & Origin.NO_GEOMETRY == 0, columns.num_bonds)
    bond = columns.bond_index + np.repeat(np.cumsum(atoms) - atoms, columns.num_bonds)[:, None]
    bond, kind = bond[has_geometry], columns.bond_attr[has_geometry, 0]
    pos = _first_conformers(columns)
    length = np.linalg.norm(pos[bond[:, 0]] - pos[bond[:, 1]], axis=1)
    z = np.sort(columns.z[bond], axis=1).astype(np.int64)
    code = (z[:, 0] * 256 + z[:, 1]) * 8 + kind
    found, count = np.unique(code, return_counts=True)
    lengths = {}
    for value in found[np.argsort(-count, kind="stable")]:
        pair, mark = int(value) // 8, "-=#:?"[min(int(value) % 8, 4)]
        ends = _symbol(pair // 256), _symbol(pair % 256)
        name = mark.join(ends[::-1] if ends[0] == "H" else ends)
        lengths[name] = length[code == value]
    return lengths


def _distances(columns: MoleculeColumns) -> np.ndarray:
    """Return the distances of all pairs of atoms in some of the molecules, evenly spaced."""
    places = np.flatnonzero(columns.origin & Origin.NO_GEOMETRY == 0)
    places = places[:: max(1, len(places) // PAIR_MOLECULES)]
    found = [np.zeros(0, np.float32)]
    for place in places:
        pos = columns.record(int(place)).pos[0]
        i, j = np.triu_indices(len(pos), 1)
        found.append(np.linalg.norm(pos[i] - pos[j], axis=1))
    return np.concatenate(found)


def describe(stats: Statistics) -> list[str]:
    """Return the lines that say what a data set is like."""
    manifest, total = stats.manifest, stats.manifest["molecules"]
    source = manifest.get("source", {})
    looked_at = "all" if stats.sampled == total else f"{stats.sampled:,}, in evenly spaced blocks,"
    size = sum(shard["bytes"] for shard in manifest["shards"])
    lines = [
        f"{total:,} molecules in {len(manifest['shards'])} shards, {size / 1e6:,.1f} MB; "
        f"{looked_at} looked at",
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
    """Parse the command line, look and print."""
    parser = OneLineParser(
        prog="data_tools.describe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="draw a picture, too")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix != ".png":
        raise MsdeError(f"--output {arguments.output} should end in .png")
    stats = statistics(arguments.root)
    print("\n".join(describe(stats)))
    if arguments.output:
        from .figure import draw  # matplotlib is an extra

        draw(stats, arguments.root.resolve().name, arguments.output)
        print(f"\n{arguments.output}")


if __name__ == "__main__":
    report_errors(main)
