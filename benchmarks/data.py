"""Measure the data path beside its rivals, each pair in one run; prints one JSON object.

python benchmarks/data.py --input pcqm4mv2-2k.csv --sdf dft8k.sdf.gz [--only stream,billion,...]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import featurise
import numpy as np
import rivals
import torch
from rdkit import Chem
from shared import NCI, peak_memory_mb

from msde.cli import report_errors
from msde.cluster import process
from msde.data import codec
from msde.data.mixture import Mixture
from msde.data.partition import Partition, SlotSize
from msde.data.shards import BLOCK_MOLECULES, INDEX_DTYPE, ShardDataset, write_manifest, write_shard
from msde.data.stream import ShardStream

BATCH = 256
REPEATS = 5


def rate(batches: Iterable[Any]) -> float:
    """Return how many molecules a second are in batches that are made when they are taken."""
    begin = time.perf_counter()
    count = sum(batch.num_graphs for batch in batches)
    return count / (time.perf_counter() - begin)


def write_repeated(mols: list[Chem.Mol], folder: Path, count: int) -> ShardDataset:
    """Write `count` molecules as shards: those given, again and again under new ids."""
    from msde.chem.record import record_from_mol

    columns = codec.columns_from_records([record_from_mol(m, n) for n, m in enumerate(mols)])
    rng = np.random.default_rng(0)
    entries = []
    for number, first in enumerate(range(0, count, 131_072)):
        size = min(131_072, count - first)
        part = columns.take(rng.integers(0, len(columns), size))
        uid = rng.integers(0, 2**64, size, dtype=np.uint64)
        entries.append(write_shard(folder, number, dataclasses.replace(part, uid=uid)))
    write_manifest(folder, entries, {})
    return ShardDataset(folder)


def stream(mols: list[Chem.Mol]) -> dict[str, Any]:
    """Time shards -> MoleculeBatch against PyG's loader over a list, both on one thread."""
    torch.set_num_threads(1)
    process.set_memory_policy(1)
    listed = [rivals.published_featuriser(mol) for mol in mols]
    with tempfile.TemporaryDirectory() as folder:
        data = Mixture([write_repeated(mols, Path(folder), 262_144)])
        partition = Partition(data, seed=0, slots_per_step=1, slot_size=SlotSize(molecules=BATCH))
        steps = iter(ShardStream(partition))
        next(steps)  # hashes of the shards are checked, once a machine

        def ours() -> Iterator[Any]:
            return (batch for (batch,) in itertools.islice(steps, 256))

        rate(ours())
        rates = [(rate(ours()), rate(rivals.published_loader(listed))) for _ in range(REPEATS)]
    own, rival = (statistics.median(r) for r in zip(*rates, strict=True))
    atoms = sum(mol.GetNumAtoms() for mol in mols) / len(mols)
    return {
        "molecules_per_s": own,
        "rival_molecules_per_s": rival,
        "ratio": own / rival,
        "atoms_per_molecule": atoms,
        "batch_size": BATCH,
        "threads": 1,
    }


class Synthetic:
    """A data set of any size that exists as an index only, made shard by shard on demand."""

    root, digest = "synthetic", "synthetic"

    def __init__(self, molecules: int) -> None:
        """Name its size."""
        self.molecules = molecules
        self.manifest = {"max_atoms": 40, "atoms": 15 * molecules, "shards": [], "no_geometry": 0}

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.molecules // BLOCK_MOLECULES)

    def __len__(self) -> int:
        return self.molecules

    def first_molecule(self, block: int) -> int:
        """Return the number of a block's first molecule."""
        return block * BLOCK_MOLECULES

    def index(self, block: int) -> np.ndarray:
        """Make a block's rows up: random ids, 1 to 30 atoms."""
        first = block * BLOCK_MOLECULES
        rng = np.random.Generator(np.random.Philox(block))
        rows = np.zeros(min(BLOCK_MOLECULES, self.molecules - first), INDEX_DTYPE)
        rows["uid"] = rng.integers(0, 2**64, len(rows), dtype=np.uint64)
        rows["num_atoms"] = rng.integers(1, 30, len(rows))
        return rows


def first_slot(molecules: int, rank: int, world_size: int) -> dict[str, Any]:
    """Plan the first slot of one rank of many, and time the plan of a later window."""
    begin = time.perf_counter()
    partition = Partition(
        Mixture([Synthetic(molecules)]),
        seed=0,
        slots_per_step=world_size,
        slot_size=SlotSize(molecules=BATCH),
        validation_fraction=0.02,
    )
    slots = partition.window(0, 0).slots(range(rank, rank + 1))
    ids = slots.numbers[: slots.ptr[1]]
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    window = partition.window(0, partition.num_windows(0) - 1)
    window.slots(range(rank, rank + 1))
    return {
        "molecules": molecules,
        "first_slot_s": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "plan_s_per_step": (time.perf_counter() - begin) / window.num_steps,
        "steps_per_epoch": partition.steps_per_epoch(),
        "first_ids": ids[:4].tolist(),
        "molecules_in_slot": len(ids),
    }


def billion() -> dict[str, Any]:
    """Plan at rank 777 of 1,000 for more and more molecules, each in a process of its own."""
    results = []
    for molecules in (50_000_000, 200_000_000, 1_000_000_000):
        command = [sys.executable, __file__, "--first-slot", str(molecules)]
        results.append(json.loads(subprocess.check_output(command)))
    return {"rank": 777, "world_size": 1000, "by_size": results}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, help="CSV of CXSMILES; default: NCI's SMILES")
    parser.add_argument("--sdf", type=Path, help="SD file; without it nothing is converted")
    parser.add_argument("--only", default="stream,billion,featurise,convert,conformers")
    parser.add_argument("--first-slot", type=int, metavar="MOLECULES", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    process.prepare()
    if arguments.first_slot:
        print(json.dumps(first_slot(arguments.first_slot, 777, 1000)))
        return
    path = arguments.input or NCI
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "stream": lambda: stream(featurise.molecules(path, None if arguments.input else 200)),
        "billion": billion,
        "featurise": lambda: featurise.featuriser(path, 1000 if arguments.input else 200),
        "conformers": lambda: featurise.conformer_scaling(60),
    }
    if arguments.sdf:
        parts["convert"] = lambda: featurise.sdf_to_shard(arguments.sdf)
    wanted = arguments.only.split(",")
    results = {name: part() for name, part in parts.items() if name in wanted}
    print(json.dumps({"torch": torch.__version__, **results}, indent=1))


if __name__ == "__main__":
    report_errors(main)
