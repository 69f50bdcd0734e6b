"""Write a data set in which every molecule has the geometry of another one.

python benchmarks/shuffled_pairs.py DIR --output DIR [--seed 0]

Pretraining on it is a control: a gain that remains does not come from the pairs of topology and
geometry. Positions are exchanged, in a cycle drawn by the seed, among molecules with the same
number of atoms; atoms, bonds and labels stay. A molecule without another of its size is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from msde.cli import report_errors
from msde.data.codec import columns_from_records
from msde.data.shards import ShardDataset
from msde.data_tools.pipeline.packing import prepare_output, write_data_set
from msde.data_tools.sets.merging import facts_of


def main() -> None:
    """Shuffle and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dataset = ShardDataset(arguments.root)
    records = list(dataset.records())
    places = defaultdict(list)
    for place, record in enumerate(records):
        places[len(record.z)].append(place)
    rng = np.random.default_rng(arguments.seed)
    positions = {}
    for same_size in places.values():
        cycle = rng.permutation(same_size)
        if len(cycle) > 1:
            for place, other in zip(cycle, np.roll(cycle, 1), strict=True):
                positions[place] = records[other].pos
    shuffled = [
        dataclasses.replace(
            record, pos=positions[place], forces=np.zeros((0, len(record.z), 3), "f4")
        )
        for place, record in enumerate(records)
        if place in positions
    ]
    facts = facts_of([dataset], dataset.manifest["labels"]) | {"forces_unit": None}
    facts["source"]["shuffled"] = {"seed": arguments.seed}
    prepare_output(arguments.output, [arguments.root])
    count = write_data_set(
        arguments.output, [columns_from_records(shuffled)], facts, [arguments.root]
    )
    print(
        f"{arguments.output}: {count} molecules, {len(records) - count} without another of its size"
    )


if __name__ == "__main__":
    report_errors(main)
