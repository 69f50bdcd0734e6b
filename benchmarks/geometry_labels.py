"""Write a table of molecules with two properties of their geometry.

python benchmarks/geometry_labels.py SHARDS --output FILE.csv

Both are of the first conformer and of heavy atoms, in A: the radius of gyration, weighted by mass,
and the mean distance of atoms that are three bonds apart (1,4), empty where there are none. They
show what an encoder of the topology knows of the geometry.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from msde.cli import report_errors
from msde.data_tools.models.references import references_of

HEADER = ("smiles", "radius_of_gyration", "distance_1_4")


def labels_of(heavy: Chem.Mol) -> tuple[float, float | None]:
    """Return the radius of gyration and the mean 1,4 distance of a molecule, in A."""
    apart = np.triu(Chem.GetDistanceMatrix(heavy) == 3)
    distances = Chem.Get3DDistanceMatrix(heavy)[apart]
    radius = rdMolDescriptors.CalcRadiusOfGyration(heavy)
    return radius, float(distances.mean()) if len(distances) else None


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, metavar="SHARDS")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    mols, left_out = references_of(given.shards, None)
    with open(given.output, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for heavy in map(Chem.RemoveHs, mols):
            labels = ["" if label is None else f"{label:.5f}" for label in labels_of(heavy)]
            table.writerow([Chem.MolToSmiles(heavy), *labels])
    print(f"{given.output}: {len(mols)} molecules; {left_out['not rebuilt']} could not be rebuilt")


if __name__ == "__main__":
    report_errors(main)
