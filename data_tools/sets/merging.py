"""Data sets put together."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.rebuild import plain_mol
from msde.chem.record import MoleculeRecord
from msde.data.codec import MoleculeColumns
from msde.data.shards import ShardDataset, repeated_ids
from msde.downstream.overlap import blocks_of, blocks_of_data_sets, overlapping
from msde.errors import MsdeError

from ..pipeline.packing import prepare_output, write_data_set

log = logging.getLogger("msde")

SUMMED = ("counts", "rejects_by_reason", "notes_by_reason")


def merge(
    roots: Sequence[Path],
    output: Path,
    labels: str = "same",
    skip_duplicates: bool = False,
    without: Sequence[Path] = (),
) -> int:
    """Write the molecules of all `roots` to `output` and return how many there are.

    Args:
        labels: `same` if they must agree, `union` to take all.
        skip_duplicates: of equal molecules with the same id keep the first; else they are an error.
            How many are left out is in the manifest, source.duplicates.molecules.
        without: data sets whose 2D graphs (first blocks of InChIKeys) are left out; their number
            is in the manifest, source.without.molecules, and that of those that are kept because
            they have no InChIKey, source.without.not_compared.

    Raises:
        MsdeError: data sets are missing, damaged or do not fit, or the output is taken.
    """
    datasets = [ShardDataset(root) for root in roots]
    merged = merged_labels(datasets, labels)
    keep = _places_to_keep(datasets, skip_duplicates)
    facts = facts_of(datasets, merged)
    if skip_duplicates:
        facts["source"]["duplicates"] = {"molecules": int((~keep).sum())}
    if without:
        facts["source"]["without"] = _leave_out(datasets, keep, without)
    prepare_output(output, roots)
    return write_data_set(output, merged_blocks(datasets, merged, keep), facts, roots)


def _leave_out(
    datasets: Sequence[ShardDataset], keep: np.ndarray, without: Sequence[Path]
) -> dict[str, Any]:
    """Clear in `keep` the molecules whose 2D graphs `without` has; return what the manifest says.

    Raises:
        MsdeError: no molecule is left.
    """
    known = blocks_of_data_sets(without)
    mols = (plain_mol(record) for dataset in datasets for record in dataset.records())
    blocks = blocks_of(mols)
    found = keep & overlapping(blocks, known)
    keep &= ~found
    if not keep.any():
        raise MsdeError("no molecule is left: --without has the 2D graphs of all")
    return {
        "digests": [ShardDataset(root).digest for root in without],
        "molecules": int(found.sum()),
        "not_compared": int((keep & np.array([not block for block in blocks])).sum()),
    }


def facts_of(datasets: Sequence[ShardDataset], labels: list[dict[str, str]]) -> dict[str, Any]:
    """Return what the manifest of all data sets together says of them.

    Raises:
        MsdeError: their forces are in different units.
    """
    units = {d.manifest["forces_unit"] for d in datasets} - {None}
    if len(units) > 1:
        named = " and ".join(unit or "an unknown unit" for unit in sorted(units))
        raise MsdeError(
            f"forces are in {named}; data sets must agree: convert again with --label-columns "
            "ENERGY=UNIT"
        )
    return {
        "labels": labels,
        "forces_unit": next(iter(units), None),
        "fields": _fields(datasets),
        "source": {
            "merged": [{"digest": d.digest, **d.manifest.get("source", {})} for d in datasets]
        },
        **{table: _sum(datasets, table) for table in SUMMED},
    }


def _fields(datasets: Sequence[ShardDataset]) -> dict[str, Any]:
    """Return which fields were read and which were not, in any of the data sets."""
    known = [d.manifest["fields"] for d in datasets if "fields" in d.manifest]
    taken = {tuple(pair): None for fields in known for pair in fields["taken"]}
    left_out = {name: why for fields in known for name, why in fields["left_out"].items()}
    return {"taken": list(taken), "left_out": left_out}


def _sum(datasets: Sequence[ShardDataset], table: str) -> dict[str, int]:
    sums: collections.Counter[str] = collections.Counter()
    for dataset in datasets:
        sums.update(dataset.manifest.get(table, {}))
    return dict(sorted(sums.items()))


def merged_labels(datasets: Sequence[ShardDataset], labels: str) -> list[dict[str, str]]:
    """Return the labels of all data sets, each once; `labels` is as in `merge`.

    Raises:
        MsdeError: they do not fit.
    """
    merged: dict[str, dict[str, str]] = {}
    names = [{label["name"] for label in d.manifest["labels"]} for d in datasets]
    for dataset in datasets:
        for label in dataset.manifest["labels"]:
            known = merged.setdefault(label["name"], label)
            if known["unit"] != label["unit"]:
                raise MsdeError(
                    f"label {label['name']} is in '{known['unit']}', but in '{label['unit']}' in "
                    f"{dataset.root}; convert one of them anew in the other's unit"
                )
    if labels == "same":
        for dataset, there in zip(datasets, names, strict=True):
            if there != names[0]:
                odd = ", ".join(sorted(there ^ names[0])[:5])
                raise MsdeError(
                    f"{dataset.root} and {datasets[0].root} differ in their labels ({odd}); give "
                    "--labels union to take all, missing where a data set lacks them"
                )
    return list(merged.values())


def _places_to_keep(datasets: Sequence[ShardDataset], skip: bool) -> np.ndarray:
    """Return which molecules to keep, of all data sets one after another, (total,) bool.

    Raises:
        MsdeError: different molecules have the same id, or equal ones that are not to be skipped.
    """
    uid = np.concatenate([d.index(b)["uid"] for d in datasets for b in range(d.num_blocks)])
    _, firsts, inverse, counts = np.unique(
        uid, return_index=True, return_inverse=True, return_counts=True
    )
    keep = np.zeros(len(uid), bool)
    keep[firsts] = True  # the first of each
    if not keep.all():
        _refuse_different(datasets, counts[inverse] > 1)
        if not skip:
            raise MsdeError(
                f"{repeated_ids(uid)}; give --skip-duplicates to keep the first of each"
            )
    return keep


def _refuse_different(datasets: Sequence[ShardDataset], repeated: np.ndarray) -> None:
    """Raise an MsdeError if different molecules have the same id, that of file name and line.

    Of equal ones say how many hold other values.

    Args:
        repeated: (total,) bool, the molecules whose id another one has.
    """
    seen: dict[int, tuple[bytes, bytes, str | Path]] = {}  # see below, and the data set
    different: list[str] = []
    first = num_lost = 0
    for dataset in datasets:
        names = [label["name"] for label in dataset.manifest["labels"]]
        for block in dataset.blocks():
            for place in np.flatnonzero(repeated[first : first + len(block)]).tolist():
                record = block.record(place)
                parts = (record.z, record.bond_index.astype("<u2"), record.bond_attr)
                graph = hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
                values = _values_of(record, names)
                known, held, root = seen.setdefault(record.uid, (graph, values, dataset.root))
                if known != graph:
                    different.append(f"'{record.name}' of {dataset.root} and one of {root}")
                num_lost += held != values
            first += len(block)
    if different:
        raise MsdeError(
            f"{len(different)} molecules have the id of a different one, {different[0]} for "
            "example: same file name, different molecules; rename one of the files and convert it "
            "again"
        )
    if num_lost:
        log.warning(
            "%d of the repeated molecules have other labels, positions or forces than the first of "
            "their id; the first ones are kept", num_lost,
        )  # fmt: skip


def _values_of(record: MoleculeRecord, names: Sequence[str]) -> bytes:
    """Return labels that are there, positions and forces of a record, hashed."""
    labels = {name: float(y) for name, y in zip(names, record.y, strict=True) if not np.isnan(y)}
    text = repr(sorted(labels.items())).encode()
    return hashlib.sha256(text + record.pos.tobytes() + record.forces.tobytes()).digest()


def merged_blocks(
    datasets: Sequence[ShardDataset], labels: list[dict[str, str]], keep: np.ndarray
) -> Iterator[MoleculeColumns]:
    """Yield the blocks of all data sets with the merged labels."""
    position = {label["name"]: column for column, label in enumerate(labels)}
    first = 0
    for dataset in datasets:
        target = [position[label["name"]] for label in dataset.manifest["labels"]]
        for block in dataset.blocks():
            kept = np.flatnonzero(keep[first : first + len(block)])
            first += len(block)
            y = np.full((len(block), len(labels)), np.nan)
            y[:, target] = block.y
            block = dataclasses.replace(block, y=y)
            if len(kept):
                yield block if len(kept) == len(block) else block.take(kept)
