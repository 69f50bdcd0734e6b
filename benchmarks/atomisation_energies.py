"""Take the energies of free atoms from a data set's total energies.

python benchmarks/atomisation_energies.py SHARDS --label energy_U0 --output DIR

Total energies in eV, of molecules of H, C, N, O and F, become energies of atomisation (`u0_atom`):
what the atoms have by themselves is most of a total energy, and no property of the structure.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.rebuild import plain_mol
from msde.cli import report_errors
from msde.data.codec import columns_from_records
from msde.data.shards import ShardDataset
from msde.data_tools.pipeline.packing import prepare_output, write_data_set
from msde.data_tools.sets.merging import facts_of
from msde.errors import MsdeError

# U0 at B3LYP/6-31G(2df,p), of the table of atoms that QM9 comes with, in Hartree.
ATOMS = {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}
EV = 27.211386  # of a Hartree


def main() -> None:
    """Subtract and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="SHARDS")
    parser.add_argument("--label", required=True, metavar="NAME")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    dataset = ShardDataset(given.root)
    names = [label["name"] for label in dataset.manifest["labels"]]
    if given.label not in names:
        raise MsdeError(f"{given.root} has no label {given.label!r}, found {', '.join(names)}")
    place, written = names.index(given.label), []
    for record in dataset.records():
        mol = plain_mol(record)
        if mol is not None:
            symbols = Counter(atom.GetSymbol() for atom in Chem.AddHs(mol).GetAtoms())
            atoms = EV * sum(ATOMS[symbol] * count for symbol, count in symbols.items())
            y = np.array([record.y[place] - atoms])
            written.append(dataclasses.replace(record, y=y))
    facts = facts_of([dataset], [{"name": "u0_atom", "unit": "eV"}])
    prepare_output(given.output, [given.root])
    write_data_set(given.output, [columns_from_records(written)], facts, [given.root])
    print(f"{given.output}: {len(written)} of {len(dataset)} molecules")


if __name__ == "__main__":
    report_errors(main)
