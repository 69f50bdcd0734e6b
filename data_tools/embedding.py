"""Embeddings of the molecules in a file or in a folder of shards, as one .npz file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from msde.chem.parsing import silence_rdkit
from msde.data.shards import ShardDataset
from msde.errors import MsdeError
from msde.files import write_atomically
from msde.inference.pretrained import Embeddings, Level, View, load

from .reading import read_molecules

SHOWN = 10  # molecules of each kind whose reasons or notes are printed


def embed_file(
    checkpoint: Path,
    input: Path,
    output: Path,
    view: View = "both",
    level: Level = "graph",
    keep_hydrogens: bool = False,
    trust_pickle: bool = False,
) -> None:
    """Embed molecules with a pretrained model, write the arrays and print a summary.

    Args:
        input: a file of molecules or a folder of shards.

    Raises:
        MsdeError: the input or the model cannot be read, or the output cannot be written.
    """
    if output.suffix != ".npz":
        raise MsdeError(f"--output {output} should end in .npz")
    if not os.access(output.parent, os.W_OK):
        raise MsdeError(f"--output {output}: its folder does not exist or is not writable")
    silence_rdkit()
    model = load(checkpoint)
    if input.is_dir():
        dataset = ShardDataset(input)
        uid = [dataset.index(block)["uid"] for block in range(dataset.num_blocks)]
        found = model.encode(input, view, level, keep_hydrogens)
        columns = {"uid": np.concatenate(uid)}
    else:
        molecules, columns = read_molecules(input, keep_hydrogens, trust_pickle)
        found = model.encode(molecules, view, level, keep_hydrogens)
    size = len(next(iter(columns.values())))
    reasons = np.array([found.reasons.get(number, "") for number in range(size)])
    arrays = {f"h_{name}": h for name, h in found.h.items()} | columns | {"reason": reasons}
    if found.ptr is not None:
        arrays["ptr"] = found.ptr

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(output, write)
    _print_notes(found)
    shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items() if name.startswith("h_"))
    print(f"{output}: {size - len(found.reasons)} of {size} molecules, {shapes}")


def _print_notes(found: Embeddings) -> None:
    for kind, notes in (("not embedded", found.reasons), ("embedded, but", found.notes)):
        for number, text in list(notes.items())[:SHOWN]:
            sys.stderr.write(f"molecule {number} {kind}: {text}\n")
        if len(notes) > SHOWN:
            sys.stderr.write(f"... and {len(notes) - SHOWN} more\n")
