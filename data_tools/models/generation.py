"""Conformers of the molecules in a file or a data set, as an SD file.

Each record is a conformer: the title is the molecule's name, the properties are

    sample               its number within the molecule, from 1
    stereo               `right`, which labels of the input the positions do not fulfil, or that
                         they were not checked
    note                 what is unusual, where anything is
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_or_error
from msde.chem.stereo import NOT_CHECKED, StereoCount, assign_cip, count_stereo, stereo_of
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.inference.pretrained import load
from msde.sampling.conformers import (
    ConformerOptions,
    Sampled,
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
    note_property,
    places,
    print_notes,
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
        MsdeError: the input or the model cannot be read, or the output cannot be written.
    """
    check_sd_output(output)
    silence_rdkit()
    model = load(checkpoint).model
    sampling = with_known_std(model, sampling)
    options = replace(options, keep_hydrogens=False)  # they are not used
    molecules, names, where, read_notes = molecules_of(input, format, options)
    total, notes = StereoCount(), {}

    def results() -> Iterator[str | MoleculeError]:
        nonlocal total
        found = in_order(molecules, lambda good: sample_conformers(model, good, sampling))
        for number, one in enumerate(found):
            if isinstance(one, MoleculeError) or one.mol is None:
                reason = one if isinstance(one, MoleculeError) else one.reason
                yield MoleculeError(f"{where[number]}: {reason}")
                continue
            if one.notes:
                notes[number] = "; ".join(one.notes)
            if number in read_notes:
                add_notes(notes, {number: read_notes[number]})
            texts, counts = zip(*_records(names[number], one, notes.get(number, "")), strict=True)
            total = sum(counts, total)
            yield "".join(texts)

    done = write_sd_results(output, "conformers", results(), len(names))
    _print_notes(where, notes)
    print(f"{output}: {sampling.num} conformers each of {done} of {len(names)} molecules")
    print(
        f"stereochemistry of the input: {total.centres_right} of {total.centres} centres and "
        f"{total.bonds_right} of {total.bonds} double bonds are right"
    )


def molecules_of(
    path: Path, format: str, options: Options
) -> tuple[list[Chem.Mol | MoleculeError], list[str], list[str], dict[int, str]]:
    """Return the molecules of a file or a data set, names, lines for messages, and notes."""
    if not path.is_dir():
        read = read_molecules(path, options, format)
        return read.mols, read.names, places(read.names, read.lines), read.notes
    mols: list[Chem.Mol | MoleculeError] = []
    names, where = [], []
    for record in ShardDataset(path).records():
        names.append(record.name)
        where.append(record.name or f"{record.uid:016x}")
        mols.append(mol_or_error(record))
    return mols, names, where, {}


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


def _records(name: str, found: Sampled, note: str) -> Iterator[tuple[str, StereoCount]]:
    """Yield the record of each conformer, and its count of labels."""
    mol = found.mol
    assert mol is not None
    set_title(mol, name)
    expected = stereo_of(mol)
    right = "right" if expected or assign_cip(Chem.Mol(mol)) else NOT_CHECKED
    for number, conformer in enumerate(mol.GetConformers(), start=1):
        counted = count_stereo(mol, conformer.GetId(), expected)
        stereo = right if counted.is_right else counted.differences
        block = Chem.MolToMolBlock(mol, confId=conformer.GetId())
        properties = f">  <sample>\n{number}\n\n>  <stereo>\n{stereo}\n\n{note_property(note)}"
        yield f"{block}{properties}$$$$\n", counted
