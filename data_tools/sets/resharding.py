"""A data set with the same molecules in the same order, in shards of another size."""

from __future__ import annotations

from pathlib import Path

from msde.data.shards import ShardDataset
from msde.errors import MsdeError

from ..pipeline.packing import prepare_output, write_data_set
from ..pipeline.parts import SHARD_MOLECULES

# Entries of a manifest that do not depend on how it is cut.
KEPT = (
    "labels",
    "forces_unit",
    "fields",
    "source",
    "counts",
    "rejects_by_reason",
    "notes_by_reason",
)


def reshard(
    root: Path,
    output: Path,
    shard_molecules: int = SHARD_MOLECULES,
    block_molecules: int | None = None,
) -> int:
    """Write the molecules of `root` to `output` and return how many there are.

    Raises:
        MsdeError: the data set is missing or damaged, or the output is taken.
    """
    if shard_molecules < 1 or (block_molecules is not None and block_molecules < 1):
        raise MsdeError("--shard-molecules and --block-molecules must be at least 1")
    dataset = ShardDataset(root)
    prepare_output(output, [root])
    facts = {name: dataset.manifest[name] for name in KEPT if name in dataset.manifest}
    return write_data_set(output, dataset.blocks(), facts, [root], shard_molecules, block_molecules)
