"""Embed the molecules of a file or of a folder of shards with a pretrained model.

python launch/embed.py --checkpoint DIR --input FILE --output FILE.npz
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from msde.cli import OneLineParser, report_errors
from msde.cluster import process
from msde.errors import MsdeError


def read_molecules(
    path: Path, keep_hydrogens: bool, trust_pickle: bool
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return the molecules of a file and where they stand in it.

    Raises:
        MsdeError: the file cannot be read, or its format is not known.
    """
    from msde.chem.record import MAX_ATOMS
    from msde.chem.vocabulary import MoleculeError
    from msde.data_tools.convert import read_file, recognise
    from msde.data_tools.readers import FORMATS, Options, check_trusted, get_reader

    if not path.is_file():
        raise MsdeError(f"input {path} cannot be read: it is neither a file nor a folder of shards")
    format = recognise(path)
    if format is None:
        known = ", ".join(FORMATS)
        raise MsdeError(f"{path}: format not known by its name; expected a folder or {known}")
    reader = get_reader(format)
    # Conformers are made later, and only where a view needs them.
    options = Options(
        keep_hydrogens=keep_hydrogens,
        conformers=0,
        keep_radicals=True,
        max_atoms=MAX_ATOMS,
        trust_pickle=trust_pickle,
    )
    check_trusted(reader, [path], options)
    molecules: list[Any] = []
    names, lines = [], []
    for raw in read_file(path, format, options):
        names.append(raw.name)
        lines.append(raw.line)
        try:
            molecules.append(reader.parse(raw, options).mol)
        except MoleculeError as error:
            molecules.append(error)  # becomes the reason, in its place
    if not molecules:
        raise MsdeError(f"no molecules in {path}")
    return molecules, {"name": np.array(names), "line": np.array(lines)}


def main() -> None:
    """Parse, embed and write one .npz."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="or a folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument(
        "--view", choices=("2d", "3d", "both"), default="both", help="which encoder"
    )
    parser.add_argument(
        "--level", choices=("graph", "node"), default="graph", help="a row a molecule, or an atom"
    )
    parser.add_argument("--keep-hydrogens", action="store_true", help="default: remove them")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read pickles, which can run any program"
    )
    arguments = parser.parse_args()
    if arguments.output.suffix != ".npz":
        raise MsdeError(f"--output {arguments.output} should end in .npz")
    if not os.access(arguments.output.parent, os.W_OK):
        raise MsdeError(
            f"--output {arguments.output}: its folder does not exist or is not writable"
        )

    process.prepare()
    import msde
    from msde.chem.parsing import silence_rdkit
    from msde.data.shards import ShardDataset
    from msde.files import write_atomically

    silence_rdkit()
    model = msde.load(arguments.checkpoint)
    source = arguments.input
    if source.is_dir():
        dataset = ShardDataset(source)
        uid = [dataset.index(block)["uid"] for block in range(dataset.num_blocks)]
        molecules, where = source, {"uid": np.concatenate(uid)}
    else:
        molecules, where = read_molecules(source, arguments.keep_hydrogens, arguments.trust_pickle)
    found = model.encode(molecules, arguments.view, arguments.level, arguments.keep_hydrogens)
    (size,) = {len(column) for column in where.values()}
    arrays = {f"h_{view}": h for view, h in found.h.items()} | where
    arrays["reason"] = np.array([found.reasons.get(m, "") for m in range(size)])
    if found.ptr is not None:
        arrays["ptr"] = found.ptr

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(arguments.output, write)
    for kind, said in (("not embedded", found.reasons), ("embedded, but", found.notes)):
        for number, text in list(said.items())[:10]:
            sys.stderr.write(f"molecule {number} {kind}: {text}\n")
        if len(said) > 10:
            sys.stderr.write(f"... and {len(said) - 10} more\n")
    shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items() if name.startswith("h_"))
    print(f"{arguments.output}: {size - len(found.reasons)} of {size} molecules, {shapes}")


if __name__ == "__main__":
    report_errors(main)
