"""Take what the atoms alone are worth from a data set's total energies.

python benchmarks/atomisation_energies.py SHARDS --label energy_U0 --output DIR [--fit SHARDS]

Total energies in eV, of molecules of H, C, N, O and F, become energies of atomisation (`u0_atom`):
what the atoms have by themselves is most of a total energy, and no property of the structure. With
--fit an atom is worth what least squares find in other molecules, bonds as usual included; what
remains is 2 % of an energy of atomisation, and hangs on how the atoms are connected and placed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.rebuild import plain_mol
from msde.chem.record import MoleculeRecord
from msde.cli import report_errors
from msde.data.codec import columns_from_records
from msde.data.shards import ShardDataset
from msde.data_tools.pipeline.packing import prepare_output, write_data_set
from msde.data_tools.sets.merging import facts_of
from msde.errors import MsdeError

# U0 at B3LYP/6-31G(2df,p), of the table of atoms that QM9 comes with, in Hartree.
ATOMS = {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}
EV = 27.211386  # of a Hartree


def composition_of(record: MoleculeRecord) -> np.ndarray:
    """Return the number of atoms of each element of ATOMS, hydrogens included."""
    symbols = Counter(atom.GetSymbol() for atom in Chem.AddHs(plain_mol(record)).GetAtoms())
    if unknown := symbols.keys() - ATOMS.keys():
        raise MsdeError(f"found {', '.join(sorted(unknown))}, expected {', '.join(ATOMS)} alone")
    return np.array([symbols[symbol] for symbol in ATOMS])


def energies_of(root: Path, label: str) -> tuple[ShardDataset, list[MoleculeRecord], np.ndarray]:
    """Return a data set, its molecules and the energies that `label` names, in eV."""
    dataset = ShardDataset(root)
    names = [known["name"] for known in dataset.manifest["labels"]]
    if label not in names:
        raise MsdeError(f"{root} has no label {label!r}, found {', '.join(names)}")
    records = list(dataset.records())
    return dataset, records, np.array([record.y[names.index(label)] for record in records])


def main() -> None:
    """Subtract and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="SHARDS")
    parser.add_argument("--label", required=True, metavar="NAME")
    parser.add_argument("--fit", type=Path, metavar="SHARDS", help="molecules with the same label")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    dataset, records, energies = energies_of(given.root, given.label)
    worth = EV * np.array(list(ATOMS.values()))
    if given.fit:
        _, others, known = energies_of(given.fit, given.label)
        fitted = np.stack(list(map(composition_of, others)))
        worth = np.linalg.lstsq(fitted, known)[0]
        worth[~fitted.any(0)] = np.nan  # an element that they lack
    counts = np.stack(list(map(composition_of, records)))
    left = energies - np.where(counts > 0, counts * worth, 0).sum(1)
    written = [
        dataclasses.replace(record, y=np.array([energy]))
        for record, energy in zip(records, left, strict=True)
        if np.isfinite(energy)
    ]
    facts = facts_of([dataset], [{"name": "u0_atom", "unit": "eV"}])
    prepare_output(given.output, [given.root])
    write_data_set(given.output, [columns_from_records(written)], facts, [given.root])
    print(f"{given.output}: {len(written)} molecules, deviation {np.nanstd(left):.3f} eV")
    if len(written) < len(records):
        print(f"{len(records) - len(written)} left out: they have elements that --fit lacks")


if __name__ == "__main__":
    report_errors(main)
