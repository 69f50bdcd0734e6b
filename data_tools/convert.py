"""Convert files of molecules to a folder of shards that training streams from.

python -m data_tools.convert --format smiles INPUT... --output DIR
"""

from __future__ import annotations

import collections
import csv
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import rdkit
from tqdm import tqdm

from msde.errors import MsdeError, OneLineParser, report_errors
from msde.molecule import (
    MoleculeError,
    MoleculeRecord,
    molecule_uid,
    outside_vocabulary,
    record_from_mol,
    silence_rdkit,
)
from msde.shards import ShardWriter

from .readers import RawMolecule, cxsmiles, sdf, smiles, source_name

READERS = {"smiles": smiles, "sdf": sdf, "cxsmiles": cxsmiles}
CHUNK = 16  # molecules a worker takes at a time
MAX_ATOMS = 256  # memory of a slot grows with the square of its largest molecule


def convert_one(
    raw: RawMolecule, format: str, keep_hydrogens: bool, max_atoms: int = MAX_ATOMS
) -> MoleculeRecord | str:
    """Convert one molecule, or return the reason why it cannot be."""
    uid = molecule_uid(raw.source, raw.line)
    try:
        mol = READERS[format].to_mol(raw, keep_hydrogens, seed=uid)
        if mol.GetNumAtoms() > max_atoms:
            return f"more than {max_atoms} atoms: {mol.GetNumAtoms()}"
        return record_from_mol(mol, uid, raw.name)
    except MoleculeError as error:
        return str(error)
    except Exception as error:  # whatever a molecule does to a library, the others go on
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _convert_chunk(
    chunk: list[RawMolecule], format: str, keep_hydrogens: bool, max_atoms: int
) -> list[MoleculeRecord | str]:
    silence_rdkit()
    return [convert_one(raw, format, keep_hydrogens, max_atoms) for raw in chunk]


def _converted(
    raws: Iterable[RawMolecule], processes: int, options: tuple[str, bool, int]
) -> Iterator[tuple[RawMolecule, MoleculeRecord | str]]:
    """Convert in `processes` workers; results come in the order of the input."""
    raws = iter(raws)
    pending: collections.deque[tuple[list[RawMolecule], Future]] = collections.deque()
    with ProcessPoolExecutor(processes) as pool:
        while True:
            while len(pending) < 4 * processes:
                chunk = list(itertools.islice(raws, CHUNK))
                if not chunk:
                    break
                pending.append((chunk, pool.submit(_convert_chunk, chunk, *options)))
            if not pending:
                return
            chunk, future = pending.popleft()
            try:
                yield from zip(chunk, future.result(), strict=True)
            except BrokenProcessPool as error:
                raise MsdeError(
                    f"a worker process died, perhaps for lack of memory, near line "
                    f"{chunk[0].line} of {chunk[0].source}; try fewer --processes"
                ) from error


def convert(
    inputs: list[Path],
    output: Path,
    format: str,
    processes: int = 1,
    limit: int | None = None,
    keep_hydrogens: bool = False,
    max_atoms: int = MAX_ATOMS,
) -> dict[str, int]:
    """Convert files to shards and return the counts of what happened.

    The result does not depend on the number of processes. Molecules that fail are listed in
    `rejects.jsonl` with the reason, unusual ones that are kept in `notes.jsonl`.

    Raises:
        MsdeError: an input is missing, the output is taken, or nothing could be converted.
    """
    _check_inputs(inputs)
    if processes < 1 or (limit is not None and limit < 1) or max_atoms < 1:
        raise MsdeError("--processes, --limit and --max-atoms must be at least 1")
    raws = _read(inputs, format, limit)
    source = {
        "files": [source_name(path) for path in inputs],
        "format": format,
        "hydrogens": "kept" if keep_hydrogens else "removed",
        "rdkit": rdkit.__version__,
    }
    counts = {"read": 0, "converted": 0, "rejected": 0, "outside_vocabulary": 0}
    reasons: collections.Counter[str] = collections.Counter()
    with (
        ShardWriter(output, source) as writer,
        open(output / "rejects.jsonl", "w") as rejects,
        open(output / "notes.jsonl", "w") as notes,
        tqdm(unit=" molecules", disable=None) as bar,
    ):
        options = (format, keep_hydrogens, max_atoms)
        for raw, result in _converted(raws, processes, options):
            counts["read"] += 1
            if isinstance(result, MoleculeRecord):
                counts["converted"] += 1
                writer.add(result)
                unusual = outside_vocabulary(result)
                if unusual:
                    counts["outside_vocabulary"] += 1
                    reason = f"not seen by the model: {', '.join(unusual)}"
                    notes.write(json.dumps(_line(raw, reason)) + "\n")
            else:
                counts["rejected"] += 1
                reasons[result.partition(":")[0]] += 1
                rejects.write(json.dumps(_line(raw, result)) + "\n")
                bar.set_postfix(rejected=counts["rejected"], refresh=False)
            bar.update()
        if not counts["converted"]:
            raise MsdeError(
                f"none of {counts['read']} molecules could be converted; "
                f"the reasons are in {output / 'rejects.jsonl'}"
            )
        writer.counts = {**counts, "rejects_by_reason": dict(sorted(reasons.items()))}
    return counts


def read_file(path: Path, format: str) -> Iterator[RawMolecule]:
    """Yield the molecules of one file, not parsed yet.

    Raises:
        MsdeError: the file cannot be read, or not to its end.
    """
    try:
        yield from READERS[format].read(path)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise MsdeError(f"input {path} cannot be read: {error}") from error


def _read(inputs: list[Path], format: str, limit: int | None) -> Iterator[RawMolecule]:
    """Read the inputs one after the other; the first molecule is read at once.

    So a file that cannot be read at all is noticed before anything is written.
    """

    in_turn = itertools.chain.from_iterable(read_file(path, format) for path in inputs)
    raws = itertools.islice(in_turn, limit)
    first = next(raws, None)
    if first is None:
        raise MsdeError(f"no molecules in {', '.join(map(str, inputs))}")
    return itertools.chain([first], raws)


def _line(raw: RawMolecule, reason: str) -> dict[str, str | int]:
    """Say where a molecule stands and what there is to say about it."""
    return {
        "source": raw.source,
        "line": raw.line,
        "name": raw.name,
        "reason": reason,
        "text": raw.text[:200],
    }


def _check_inputs(inputs: list[Path]) -> None:
    for path in inputs:
        if not path.is_file():
            raise MsdeError(f"input {path} is not a file")
    names = collections.Counter(source_name(path) for path in inputs)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise MsdeError(
            f"two inputs are named {twice}; molecules are known by file name and line, rename one"
        )


def main() -> None:
    """Parse the command line and convert."""
    cores = len(os.sched_getaffinity(0))
    parser = OneLineParser(prog="data_tools.convert", description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=".gz is read too")
    parser.add_argument("--format", required=True, choices=READERS)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--processes", type=int, default=cores, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="read only the first N molecules")
    parser.add_argument("--keep-hydrogens", action="store_true", help="default: remove them")
    parser.add_argument("--max-atoms", type=int, default=MAX_ATOMS, metavar="N", help="reject more")
    arguments = parser.parse_args()
    counts = convert(**vars(arguments))
    print(
        f"{arguments.output}: {counts['converted']} molecules converted, "
        f"{counts['rejected']} of {counts['read']} rejected (see rejects.jsonl)"
    )
    if counts["outside_vocabulary"]:
        print(f"{counts['outside_vocabulary']} hold atoms outside the vocabulary (see notes.jsonl)")


if __name__ == "__main__":
    report_errors(main)
