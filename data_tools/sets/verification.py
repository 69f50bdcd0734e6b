"""Checks of a data set: every file, every block, every field.

Files whose SHA-256 is not the recorded one are never opened with LMDB.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from msde.chem.record import Origin
from msde.chem.vocabulary import ATOM_SIZES, BOND_SIZES, CIP_LABELS
from msde.data.codec import MoleculeColumns
from msde.data.integrity import check_size, damaged_blocks, list_problems
from msde.data.manifest import NAME
from msde.data.shards import (
    INDEX_DTYPE,
    LISTS,
    ShardDataset,
    digest_of,
    read_index_file,
    read_manifest,
    repeated_ids,
)
from msde.errors import DataDamaged
from msde.files import file_sha256

from ..runs import is_run, problems_of_run

OFF_CENTRE = 1e-3  # A, of a conformer's mean; it is stored in single precision
_ORIGINS = sum(Origin)

Checks = dict[str, tuple[np.ndarray, np.ndarray]]  # which rows have a problem, and their molecules


def verify(root: Path, quick: bool = False) -> Iterator[str]:
    """Yield a line for each problem of a data set, a run, a checkpoint or weights.

    Args:
        quick: check sizes, the index and the manifest alone, not the contents of shards.

    Raises:
        MsdeError: the folder holds none of them, or no data set that this release reads.
    """
    if is_run(root):
        yield from problems_of_run(root)
        return
    manifest = read_manifest(root)
    yield from _manifest_problems(root, manifest)
    seen = []
    for shard in tqdm(manifest["shards"], unit=" shards", disable=None):
        path = root / shard["file"]
        problems = list(_file_problems(path, shard, quick))
        yield from problems
        if not problems and not quick:
            yield from _content_problems(root, manifest, shard)
        if not problems:
            seen.append(read_index_file(path, shard))
    repeated = repeated_ids(np.concatenate([np.zeros(0, INDEX_DTYPE), *seen])["uid"])
    if repeated:
        yield f"{root}: {repeated}"


def _manifest_problems(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    shards = manifest["shards"]
    if digest_of(shards) != manifest["digest"]:
        yield f"{root / NAME}: the digest is not that of the shards' hashes"
    for name in ("molecules", "atoms", "no_geometry"):
        total, said = sum(shard[name] for shard in shards), manifest[name]
        if total != said:
            yield f"{root / NAME}: {said} {name}, but the shards have {total}"
    listed = {name for s in shards for name in (s["file"], Path(s["file"]).stem + ".idx")}
    for path in sorted(root.glob("shard-*")):
        if path.name not in listed:
            yield f"{path} is not in the manifest"
    for name in LISTS:  # those of earlier releases are not in the manifest
        if name not in manifest.get("lists", {name}) and (root / name).exists():
            yield f"{root / name} is not in the manifest"
    yield from list_problems(root, manifest)


def _file_problems(path: Path, shard: dict[str, Any], quick: bool) -> Iterator[str]:
    """Check sizes and hashes of a shard and its index, without LMDB."""
    index = path.with_suffix(".idx")
    if not index.exists():
        yield f"{index} has no file"
    elif file_sha256(index) != shard["index_sha256"]:
        where = ", ".join(f"block {block}" for block in _damaged_index_blocks(index, shard))
        yield f"{index} is damaged (SHA-256 differs; {where or 'its size or checksums'})"
    try:
        check_size(path, shard["bytes"])
    except DataDamaged as error:
        yield str(error)
        return
    if not quick and file_sha256(path) != shard["sha256"]:
        found = damaged_blocks(path)
        for block, why in found:
            yield f"{path}, block {block}: {why}"
        if not found:
            yield f"{path} is damaged outside its blocks (SHA-256 differs)"


def _damaged_index_blocks(index: Path, shard: dict[str, Any]) -> list[int]:
    data, per_block = index.read_bytes(), shard["block_molecules"]
    end = shard["molecules"] * INDEX_DTYPE.itemsize
    crcs = np.frombuffer(data[end:][: (len(data) - end) // 4 * 4], "<u4")
    size = per_block * INDEX_DTYPE.itemsize
    rows = [data[at : min(at + size, end)] for at in range(0, end, size)]
    return [b for b, crc in enumerate(crcs) if b < len(rows) and zlib.crc32(rows[b]) != crc]


def _content_problems(root: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> Iterator[str]:
    """Read a shard whose hash is right, and check its molecules."""
    dataset = ShardDataset(root, manifest={**manifest, "shards": [shard]})
    atoms = no_geometry = 0
    for block in range(dataset.num_blocks):
        where = f"{root / shard['file']}, block {block}"
        try:
            columns = dataset.read_block(block)
            index = dataset.index(block)
        except DataDamaged as error:
            yield str(error)
            continue
        atoms += int(columns.num_atoms.sum())
        no_geometry += int((columns.origin & Origin.NO_GEOMETRY != 0).sum())
        if not np.array_equal(index["uid"], columns.uid):
            yield f"{where}: ids are not those of the index"
        if not np.array_equal(index["num_atoms"], columns.num_atoms):
            yield f"{where}: numbers of atoms are not those of the index"
        num_labels = len(manifest["labels"])
        if columns.y.shape[1] != num_labels:
            yield f"{where}: {columns.y.shape[1]} labels, but the manifest has {num_labels}"
        for problem, molecules in molecule_problems(columns):
            yield f"{where}: {problem} in {len(molecules)} molecules, {molecules[0]} for example"
    if (atoms, no_geometry) != (shard["atoms"], shard["no_geometry"]):
        yield f"{root / shard['file']}: sums of atoms are not those of the manifest"


def molecule_problems(columns: MoleculeColumns) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each problem of the fields of molecules, with the molecules that have it."""
    number = np.arange(len(columns))
    counts_fit = columns.num_atoms > 0
    counts_fit &= columns.num_conformers > 0
    counts_fit &= (columns.num_forces == 0) | (columns.num_forces == columns.num_conformers)
    counts_fit &= columns.origin <= _ORIGINS
    if not counts_fit.all():
        yield "counts out of range", number[~counts_fit]
        return
    atom_of = np.repeat(number, columns.num_atoms)
    bond_of = np.repeat(number, columns.num_bonds)
    atoms_of_bond = np.repeat(columns.num_atoms, columns.num_bonds)
    first, second = columns.bond_index.astype(np.int64).T
    checks = {
        "atomic numbers out of range": (columns.z > 118, atom_of),
        "atom features out of range": ((columns.x >= ATOM_SIZES).any(1), atom_of),
        "CIP labels out of range": (columns.cip >= len(CIP_LABELS), atom_of),
        "bond features out of range": ((columns.bond_attr >= BOND_SIZES).any(1), bond_of),
        "bonds out of order or range": ((first >= second) | (second >= atoms_of_bond), bond_of),
        "labels that are infinite": (np.isinf(columns.y).any(1), number),
    }
    yield from _found(checks)
    yield from _edge_problems(columns, atom_of, bond_of)
    yield from _geometry_problems(columns)
    try:
        columns.name.tobytes().decode()
    except UnicodeDecodeError:
        yield "names that are not UTF-8", number


def _found(checks: Checks) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the problems that occur, with the molecules that have them."""
    for problem, (is_wrong, molecule) in checks.items():
        if is_wrong.any():
            yield problem, np.unique(molecule[is_wrong])


def _edge_problems(
    columns: MoleculeColumns, atom_of: np.ndarray, bond_of: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Check that extended edges go both ways, stay in their molecule and include the bonds."""
    number = np.arange(len(columns))
    degrees = np.bincount(atom_of, columns.extended_degree, len(columns)).astype(np.int64)
    edge_of = np.repeat(number, columns.num_extended)
    is_outside = columns.extended_source >= columns.num_atoms[edge_of]
    ranges = {
        "degrees that are not those of extended edges": (degrees != columns.num_extended, number),
        "extended edges out of range": (is_outside, edge_of),
    }
    yield from _found(ranges)
    if any(is_wrong.any() for is_wrong, _ in ranges.values()):
        return
    start = columns.starts("z")
    target = np.repeat(np.arange(len(columns.z)), columns.extended_degree)
    source = columns.extended_source + start[edge_of]
    first, second = (columns.bond_index + start[bond_of][:, None]).T
    total = len(columns.z)
    edges, back = target * total + source, source * total + target
    checks = {
        "extended edges out of order": (np.diff(edges, prepend=-1) <= 0, edge_of),
        "extended edges that go one way": (~np.isin(back, edges), edge_of),
        "extended edges from an atom to itself": (source == target, edge_of),
        "bonds that are no extended edges": (~np.isin(second * total + first, edges), bond_of),
    }
    yield from _found(checks)


def _geometry_problems(columns: MoleculeColumns) -> Iterator[tuple[str, np.ndarray]]:
    number = np.arange(len(columns))
    of_row = np.repeat(number, columns.rows_per_molecule("pos"))
    infinite = ~np.isfinite(columns.pos).all(1)
    if infinite.any():
        yield "positions that are not finite", np.unique(of_row[infinite])
        return
    atoms = np.repeat(columns.num_atoms, columns.num_conformers).astype(np.int64)
    conformer_of = np.repeat(number, columns.num_conformers)
    sums = np.add.reduceat(columns.pos.astype(np.float64), np.cumsum(atoms) - atoms)
    off_centre = np.abs(sums / atoms[:, None]).max(1) > OFF_CENTRE
    is_zero = np.bincount(of_row, np.abs(columns.pos).sum(1), len(columns)) == 0
    without = columns.origin & Origin.NO_GEOMETRY != 0
    wrong = (without & ~is_zero) | (~without & is_zero & (columns.num_atoms > 1))
    of_force = np.repeat(number, columns.rows_per_molecule("forces"))
    checks = {
        "conformers that are not centred": (off_centre, conformer_of),
        "geometry that contradicts the origin": (wrong, number),
        "forces that are not finite": (~np.isfinite(columns.forces).all(1), of_force),
    }
    yield from _found(checks)
