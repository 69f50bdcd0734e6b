"""Conformers of the molecules in a file or a data set, as an SD file.

Each record is a conformer: the title is the molecule's name, the properties are

    line                 where the molecule stood in the file; of shards `uid`
    sample               its number within the molecule, from 1
    stereo               `right`, which labels of the input the positions do not fulfil, or that
                         they were not checked
    note                 what is unusual, where anything is
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_or_error
from msde.chem.stereo import NOT_CHECKED, StereoCount, assign_cip, count_stereo, stereo_of
from msde.chem.vocabulary import MoleculeError
from msde.inference.pretrained import load
from msde.sampling.conformers import (
    ConformerOptions,
    sample_conformers,
    with_known_std,
)

from ..options import AUTO, Options
from ..reading import read_molecules
from ..sets.exporting import set_title
from .results import (
    add_notes,
    check_sd_output,
    in_order,
    open_shards,
    places,
    print_notes,
    sd_property,
    write_sd_results,
)

# Notes that are counted, not printed one by one: what they hold, and the line after their number.
COUNTED = {
    "sampled from noise": "sampled from noise: ETKDG finds no conformer",
    "some start twice": "some samples start twice: ETKDG finds fewer conformers",
    "was made again": "samples made again, their stereo was wrong",
    "not relaxed": "not relaxed: MMFF94 lacks parameters",
    "not fully relaxed": "some samples not fully relaxed: MMFF94 stopped",
}


def conformers_of_file(
    checkpoint: Path,
    input: Path,
    output: Path,
    sampling: ConformerOptions,
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
) -> None:
    """Sample conformers of molecules, write them and print a summary.

    Args:
        checkpoint: a folder of weights, or a run: then its best weights.
        input: a file of molecules, or a folder of shards.
        output: .sdf or .sdf.gz.

    Raises:
        MsdeError: the input or the model cannot be read, the output cannot be written, or no
            molecule has conformers.
    """
    check_sd_output(output)
    silence_rdkit()
    model = load(checkpoint).model
    sampling = with_known_std(model, sampling)
    options = replace(options, keep_hydrogens=False)  # they are not used
    read = molecules_of(input, format, options)
    total, notes = StereoCount(), {}

    def results() -> Iterator[str | MoleculeError]:
        nonlocal total
        found = in_order(read.mols, lambda good: sample_conformers(model, good, sampling))
        for number, one in enumerate(found):
            if isinstance(one, MoleculeError):
                yield one
                continue
            if one.notes:
                notes[number] = "; ".join(one.notes)
            if number in read.notes:
                add_notes(notes, {number: read.notes[number]})
            set_title(one.mol, read.names[number])
            given = read.sources[number], sd_property("note", notes.get(number, ""))
            texts, counts = zip(*_records(one.mol, *given), strict=True)
            total = sum(counts, total)
            yield "".join(texts)

    done = write_sd_results(output, "conformers", results(), read.where)
    _print_notes(read.where, notes)
    print(f"{output}: {sampling.num} conformers each of {done} of {len(read.where)} molecules")
    print(
        f"stereochemistry of the input: {total.centres_right} of {total.centres} centres and "
        f"{total.bonds_right} of {total.bonds} double bonds are right"
    )


@dataclass(frozen=True)
class Given:
    """The molecules of a file or a data set."""

    mols: list[Chem.Mol | MoleculeError]
    names: list[str]
    where: list[str]  # line and name, or id, for messages
    sources: list[str]  # line or uid, as a property of a record
    notes: dict[int, str]  # of the reader


def molecules_of(path: Path, format: str, options: Options) -> Given:
    """Return the molecules of a file or a data set.

    Raises:
        MsdeError: they cannot be read, or an option says how a file is read, of a data set.
    """
    dataset = open_shards(path, options)
    if dataset is None:
        read = read_molecules(path, options, format)
        sources = [sd_property("line", line) for line in read.lines]
        return Given(read.mols, read.names, places(read.names, read.lines), sources, read.notes)
    given = Given([], [], [], [], {})
    for record in dataset.records():
        uid = f"{record.uid:016x}"
        given.mols.append(mol_or_error(record))
        given.names.append(record.name)
        given.where.append(record.name or uid)
        given.sources.append(sd_property("uid", uid))
    return given


def _print_notes(where: list[str], notes: dict[int, str]) -> None:
    """Print what is unusual about molecules; what the sampler did is only counted."""
    counts: collections.Counter[str] = collections.Counter()
    others = {}
    for number, note in notes.items():
        parts = [part for part in note.split("; ") if not part.startswith("chosen of ")]
        counts.update(kind for kind in COUNTED if any(kind in part for part in parts))
        others[number] = "; ".join(p for p in parts if not any(kind in p for kind in COUNTED))
    print_notes("sampled", where, {}, {number: note for number, note in others.items() if note})
    for kind, said in COUNTED.items():
        if counts[kind]:
            print(f"{counts[kind]} of {len(where)} molecules: {said}")


def _records(mol: Chem.Mol, source: str, note: str) -> Iterator[tuple[str, StereoCount]]:
    """Yield the record of each conformer, and its count of labels.

    Args:
        source: a property, as `note`.
    """
    expected = stereo_of(mol)
    right = "right" if expected or assign_cip(Chem.Mol(mol)) else NOT_CHECKED
    for number, conformer in enumerate(mol.GetConformers(), start=1):
        counted = count_stereo(mol, conformer.GetId(), expected)
        stereo = right if counted.is_right else counted.differences
        block = Chem.MolToMolBlock(mol, confId=conformer.GetId())
        properties = sd_property("sample", number) + sd_property("stereo", stereo)
        yield f"{block}{source}{properties}{note}$$$$\n", counted
