"""Embeddings of the molecules in a file or in a folder of shards, as `.npz` or `.csv`.

There is a row for each molecule of the input, in its order; one that cannot be embedded has NaN (in
a table: nothing) and the reason. The arrays of an `.npz` are

    h_2d, h_3d           (molecules, width) vectors of the views, or of atoms with `--level node`
    ptr                  (molecules + 1,) with `--level node`: molecule i has rows ptr[i]:ptr[i + 1]
    name, line, reason   of each molecule; the reason is "" for one that is embedded
    uid                  instead of line, where the input is a folder of shards
    y                    (molecules, labels), NaN where missing
    label_names, label_units

A `.csv` has the columns name, line (or uid), reason, the labels, and h_2d_0, h_2d_1, ...
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.checkpoints.weights import find_weights
from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_or_error
from msde.chem.vocabulary import MoleculeError
from msde.config.schema import Readout
from msde.files import write_atomically
from msde.inference.pretrained import Level, View, load

from ..options import AUTO, Options
from ..reading import read_molecules
from .cache import add_conformers
from .results import (
    add_notes,
    check_vector_output,
    ids_of_shards,
    open_shards,
    places,
    print_notes,
)

ROWS = 1024  # of a table that are written together


def embed_file(
    checkpoint: Path,
    input: Path,
    output: Path,
    view: View = "both",
    level: Level = "graph",
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
    projector: Path | None = None,
    readout: Readout = "pretrained",
) -> None:
    """Embed molecules with a pretrained model, write the file and print a summary.

    Args:
        checkpoint: a folder of weights, or a run: then its best weights.
        input: a file of molecules or a folder of shards.
        format: one of readers.FORMATS; `auto` asks the readers.
        options: how the file is read, and whether hydrogens are kept.
        projector: a folder for TensorBoard's projector; see `projector.write_projector`.
        readout: layers of the 2D encoder; see `msde.load`.

    Raises:
        MsdeError: the input or the model cannot be read, or the output cannot be written.
    """
    check_vector_output(output, level, projector)
    silence_rdkit()
    model, keep_hydrogens = load(checkpoint, readout=readout), bool(options.keep_hydrogens)
    arrays: dict[str, np.ndarray] = {}
    dataset = open_shards(input, options)
    if dataset is not None:
        labels = [(label["name"], label["unit"]) for label in dataset.manifest["labels"]]
        names, where, y = ids_of_shards(dataset)
        arrays |= {"name": np.array(names), "uid": np.array(where), "y": y}
        found = model.encode(input, view, level, keep_hydrogens)
    else:
        options = replace(options, keep_hydrogens=keep_hydrogens)
        read = read_molecules(input, options, format)
        if view != "2d":
            add_conformers(input, read, format, options)
        labels = [(label.name, label.unit) for label in read.labels]
        arrays |= {"name": np.array(read.names), "line": np.array(read.lines), "y": read.y}
        where = places(read.names, read.lines)
        found = model.encode(read.mols, view, level, keep_hydrogens)
        add_notes(found.notes, read.notes)
    size = len(arrays["y"])
    arrays["reason"] = np.array([found.reasons.get(number, "") for number in range(size)])
    arrays["label_names"], arrays["label_units"] = np.array(labels, str).reshape(-1, 2).T
    arrays |= {f"h_{name}": h for name, h in found.h.items()}
    if found.ptr is not None:
        arrays["ptr"] = found.ptr
    _write(output, arrays)
    if projector is not None:
        mols = read.mols if dataset is None else map(mol_or_error, dataset.records())
        _project(projector, mols, where, arrays)
    print_notes("embedded", where, found.reasons, found.notes)
    shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items() if name.startswith("h_"))
    print(f"weights of {find_weights(checkpoint)}")
    print(f"{output}: {size - len(found.reasons)} of {size} molecules, {shapes}")


def _project(
    folder: Path,
    mols: Iterable[Chem.Mol | MoleculeError],
    where: Sequence[str],
    arrays: dict[str, np.ndarray],
) -> None:
    from .projector import write_projector

    h = {name: array for name, array in arrays.items() if name.startswith("h_")}
    labels = {name: arrays["y"][:, i] for i, name in enumerate(arrays["label_names"])}
    drawn = [mol if isinstance(mol, Chem.Mol) else None for mol in mols]
    names = [name or place for name, place in zip(arrays["name"].tolist(), where, strict=True)]
    points = write_projector(folder, drawn, names, h, labels)
    print(f"{folder}: {points} points; tensorboard --logdir {folder}")


def _write(output: Path, arrays: dict[str, np.ndarray]) -> None:
    write = _write_table if output.suffix == ".csv" else _write_arrays
    write_atomically(output, lambda path: write(path, arrays))


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _write_table(path: Path, arrays: dict[str, np.ndarray]) -> None:
    texts = [name for name in ("name", "line", "uid", "reason") if name in arrays]
    views = [name for name in arrays if name.startswith("h_")]
    places = [f"{view}_{place}" for view in views for place in range(arrays[view].shape[1])]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*texts, *arrays["label_names"], *places])
        for first in range(0, len(arrays["reason"]), ROWS):
            part = {name: arrays[name][first : first + ROWS] for name in (*texts, "y", *views)}
            numbers = (_cells(part[name]) for name in ("y", *views))
            writer.writerows(np.column_stack([*(part[name] for name in texts), *numbers]).tolist())


def _cells(numbers: np.ndarray) -> np.ndarray:
    """Return the shortest text of each number, nothing for NaN."""
    return np.where(np.isnan(numbers), "", numbers.astype(str))
