"""Featurising and converting, each beside its rival in one run, for benchmarks/data.py."""

from __future__ import annotations

import gzip
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import rivals
import torch
from rdkit import Chem
from shared import NCI

from msde.chem.features import features_from_mol
from msde.chem.parsing import silence_rdkit
from msde.chem.record import record_from_mol
from msde.chem.vocabulary import MoleculeError
from msde.data import codec
from msde.data_tools.convert import convert
from msde.data_tools.pipeline.chunks import CHUNK
from msde.data_tools.readers import Options, get_reader
from msde.data_tools.reading import choose_format

REPEATS = 5


def molecules(path: Path, limit: int | None = None) -> list[Chem.Mol]:
    """Return the molecules of a file that have a geometry, as the converter parses them."""
    silence_rdkit()
    format, options = choose_format([path]), Options()
    reader = get_reader(format, options)

    def parsed() -> Iterator[Chem.Mol]:
        for raw in reader.read(path):
            try:
                mol = reader.parse(raw).mol
                record_from_mol(mol, uid=0)
            except (MoleculeError, RuntimeError):
                continue
            yield mol

    return list(itertools.islice(parsed(), limit))


def seconds(repeats: int = REPEATS, **works: Callable[[], Any]) -> dict[str, float]:
    """Return the median seconds of each work; all are done in turn, `repeats` times."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def featuriser(path: Path, limit: int | None = 1000) -> dict[str, Any]:
    """Time parsed molecules -> records beside the published featuriser, on one thread.

    A record holds CIP labels, extended edges and centred, checked positions. The published code
    extends and centres whenever it gets an item, so the same work is its featuriser and that.
    `features` leaves CIP labels out, and of the published code what it does to get an item.
    """
    torch.set_num_threads(1)
    mols = molecules(path, limit)

    def for_all(work: Callable[[Chem.Mol], Any]) -> Callable[[], None]:
        def run() -> None:
            for mol in mols:
                work(mol)

        return run

    taken = seconds(
        record=for_all(lambda mol: record_from_mol(mol, uid=0)),
        features=for_all(features_from_mol),
        rival_features=for_all(rivals.published_featuriser),
        rival=for_all(lambda mol: rivals.published_get(rivals.published_featuriser(mol))),
    )
    rates = {name: len(mols) / value for name, value in taken.items()}
    return {
        "molecules_per_s": rates["record"],
        "rival_molecules_per_s": rates["rival"],
        "ratio": rates["record"] / rates["rival"],
        "features_per_s": rates["features"],
        "rival_features_per_s": rates["rival_features"],
        "ratio_of_features": rates["features"] / rates["rival_features"],
        "ratio_of_record_to_rival_features": rates["record"] / rates["rival_features"],
        "molecules": len(mols),
        "atoms_per_molecule": sum(mol.GetNumAtoms() for mol in mols) / len(mols),
        "threads": 1,
    }


def sdf_to_shard(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Time an SD file -> shards, on all cores and in one process, beside RDKit reading the file.

    `featurised` does what has to follow the parsing: records, columns, a block of bytes.
    """
    silence_rdkit()
    cores = len(os.sched_getaffinity(0))

    def converted(processes: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            convert([path], Path(folder) / "shards", "sdf", processes=processes, limit=limit)

    def read() -> None:
        with _open(path) as file:
            for _ in itertools.islice(Chem.ForwardSDMolSupplier(file), limit):
                pass

    # First, for molecules that fill the memory make all of it slower; converting holds only few.
    taken = seconds(
        converted=lambda: converted(cores), in_one_process=lambda: converted(1), read=read
    )
    blocks = list(itertools.islice(_mol_blocks(path), limit))

    def parsed() -> None:
        for block in blocks:
            Chem.MolFromMolBlock(block)

    taken |= seconds(3, parsed=parsed)
    mols = [mol for mol in map(Chem.MolFromMolBlock, blocks) if mol is not None]
    mols = [mol for mol in mols if mol.GetNumConformers() and mol.GetConformer().Is3D()]

    def featurised() -> None:
        for first in range(0, len(mols), 1024):
            part = mols[first : first + 1024]
            codec.encode(codec.columns_from_records([record_from_mol(m, 0) for m in part]))

    taken |= seconds(3, featurised=featurised)
    rates = {name: len(blocks) / value for name, value in taken.items()}
    return {
        "molecules_per_s": rates["converted"],
        "rival_molecules_per_s": rates["read"],
        "ratio": rates["converted"] / rates["read"],
        "processes": cores,
        "in_one_process_per_s": rates["in_one_process"],
        "ratio_in_one_process": rates["in_one_process"] / rates["read"],
        "rival_blocks_per_s": rates["parsed"],
        "featurised_per_s": rates["featurised"],
        "molecules": len(blocks),
    }


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _mol_blocks(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for record in file.read().decode().replace("\r\n", "\n").split("$$$$\n"):
            if record.strip():
                yield record


def conformer_scaling(count: int) -> dict[str, Any]:
    """Time conformers of NCI's SMILES made by two processes beside one, their start included.

    At least four chunks are converted, for a chunk is what a process takes at a time.
    """
    count = max(count, 4 * CHUNK)

    def convert_with(processes: int) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                convert([NCI], Path(folder) / "shards", "smiles", processes=processes, limit=count)

        return run

    taken = seconds(3, two=convert_with(2), one=convert_with(1))
    return {
        "molecules_per_s": count / taken["two"],
        "rival_molecules_per_s": count / taken["one"],
        "ratio": taken["one"] / taken["two"],
        "molecules": count,
    }
