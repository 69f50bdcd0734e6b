"""A data set divided by scaffold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.rebuild import plain_mol
from msde.chem.record import molecule_uid
from msde.chem.scaffold import scaffold_of
from msde.data import manifest
from msde.data.shards import ShardDataset
from msde.errors import MsdeError

from ..pipeline.packing import prepare_outputs, write_data_set
from .merging import facts_of, merged_blocks, merged_labels

PARTS = ("train", "test")


def split(
    roots: Sequence[Path], output: Path, fraction: float = 0.1, seed: int = 0
) -> tuple[dict[str, int], int]:
    """Write the molecules of `roots` to `output`/train and `output`/test, by scaffold.

    A scaffold is in the test set if a hash of it and the seed is below `fraction`: more data do not
    move a molecule from one part to the other. Molecules that RDKit cannot rebuild are in the
    training set. A part that the same split has finished before is kept: one that was interrupted
    goes on.

    Returns:
        How many molecules each part has, and how many molecules RDKit cannot rebuild.

    Raises:
        MsdeError: data sets are missing, damaged or do not fit, or a part would be empty,
            or its folder is taken.
        DiskFull: there is not enough room.
    """
    datasets = [ShardDataset(root) for root in roots]
    labels = merged_labels(datasets, "union")
    in_test, unknown = _in_test(datasets, fraction, seed)
    if in_test.all() or not in_test.any():
        raise MsdeError(
            f"{int(in_test.sum())} of {len(in_test)} molecules would be in the test set; choose "
            "another --fraction"
        )
    kept = dict(zip(PARTS, (~in_test, in_test), strict=True))
    common = facts_of(datasets, labels)
    facts = {}
    for part in PARTS:
        how = {"part": part, "fraction": fraction, "seed": seed}
        facts[part] = {**common, "source": {**common["source"], "split": how}}
    missing = [part for part in PARTS if not _is_finished(output / part, facts[part])]
    if missing:
        finished = [output / part for part in PARTS if part not in missing]
        prepare_outputs([output / part for part in missing], roots, finished)
    for part in missing:
        blocks = merged_blocks(datasets, labels, kept[part])
        write_data_set(output / part, blocks, facts[part], roots)
    return {part: int(kept[part].sum()) for part in PARTS}, unknown


def _is_finished(root: Path, facts: dict[str, Any]) -> bool:
    """Return whether a folder holds a data set of which the manifest says `facts`.

    Raises:
        DataDamaged: the data set is not as it was written.
    """
    if not (root / manifest.NAME).exists():
        return False
    as_read = json.loads(json.dumps(facts))
    return as_read.items() <= ShardDataset(root).manifest.items()


def _in_test(
    datasets: Sequence[ShardDataset], fraction: float, seed: int
) -> tuple[np.ndarray, int]:
    """Return which molecules are held out, of all data sets one after another, (total,) bool."""
    held_out, unknown = [], 0
    for record in itertools.chain.from_iterable(dataset.records() for dataset in datasets):
        mol = plain_mol(record)  # without radicals where side chains are removed
        if mol is None:
            held_out.append(False)
            unknown += 1
            continue
        scaffold = scaffold_of(mol)
        # Hashed as a uid is: 64 bits of the scaffold and the seed.
        held_out.append(molecule_uid(str(seed), scaffold) < fraction * 2**64)
    return np.array(held_out), unknown
