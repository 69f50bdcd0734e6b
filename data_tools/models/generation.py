"""Conformers of the molecules in a file or a data set, as an SD file.

Each record is a conformer: the title is the molecule's name, the properties are

    sample               its number within the molecule, from 1
    stereo               `right`, or which labels of the input the positions do not fulfil
    note                 what is unusual, where anything is
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_or_error
from msde.chem.stereo import StereoCount, count_stereo, stereo_of
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.inference.pretrained import load
from msde.sampling.conformers import ConformerOptions, Sampled, sample_conformers

from ..options import AUTO, Options
from ..reading import read_molecules
from ..sets.exporting import set_title
from .results import check_sd_output, in_order, places, write_sd_results


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
    molecules, names, where = molecules_of(input, format, options)
    total = StereoCount()

    def results() -> Iterator[str | MoleculeError]:
        nonlocal total
        found = in_order(molecules, lambda good: sample_conformers(model, good, sampling))
        for name, place, one in zip(names, where, found, strict=True):
            if isinstance(one, MoleculeError) or one.mol is None:
                reason = one if isinstance(one, MoleculeError) else one.reason
                yield MoleculeError(f"{place}: {reason}")
                continue
            texts, counts = zip(*_records(name, one), strict=True)
            total = sum(counts, total)
            yield "".join(texts)

    done = write_sd_results(output, "conformers", results(), len(names))
    print(f"{output}: {sampling.num} conformers each of {done} of {len(names)} molecules")
    print(
        f"stereochemistry of the input: {total.centres_right} of {total.centres} centres and "
        f"{total.bonds_right} of {total.bonds} double bonds are right"
    )


def molecules_of(
    path: Path, format: str, options: Options
) -> tuple[list[Chem.Mol | MoleculeError], list[str], list[str]]:
    """Return the molecules of a file or a data set, names, and lines for messages."""
    if not path.is_dir():
        read = read_molecules(path, replace(options, keep_hydrogens=True), format)
        return read.mols, read.names, places(read.names, read.lines)
    mols: list[Chem.Mol | MoleculeError] = []
    names, where = [], []
    for record in ShardDataset(path).records():
        names.append(record.name)
        where.append(record.name or f"{record.uid:016x}")
        mols.append(mol_or_error(record))
    return mols, names, where


def _records(name: str, found: Sampled) -> Iterator[tuple[str, StereoCount]]:
    """Yield the record of each conformer, and its count of labels."""
    mol = found.mol
    assert mol is not None
    set_title(mol, name)
    expected = stereo_of(mol)
    note = f">  <note>\n{'; '.join(found.notes)}\n\n" if found.notes else ""
    for number, conformer in enumerate(mol.GetConformers(), start=1):
        counted = count_stereo(mol, conformer.GetId(), expected)
        stereo = "right" if counted.is_right else counted.differences
        block = Chem.MolToMolBlock(mol, confId=conformer.GetId())
        text = f"{block}>  <sample>\n{number}\n\n>  <stereo>\n{stereo}\n\n{note}$$$$\n"
        yield text, counted
