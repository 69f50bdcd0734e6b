"""benchmarks/geometry_labels.py: labels of geometry that are known beforehand."""

import csv
import math
import subprocess
import sys

import pytest
from rdkit import Chem

from fixtures.paths import ROOT
from msde.data_tools.convert import convert


def test_labels_of_flat_chains(tmp_path):
    # Butane in a plane: anti, and with its ends on the same side (syn); propane has no 1,4 pair.
    anti = [(0, 1, 0), (1, 0, 0), (2, 1, 0), (3, 0, 0)]
    syn = [(0, 1, 0), (1, 0, 0), (2, 0, 0), (3, 1, 0)]
    blocks = []
    for places in (anti, syn, anti[:3]):
        mol = Chem.MolFromSmiles("C" * len(places))
        conformer = Chem.Conformer(len(places))
        for number, place in enumerate(places):
            conformer.SetAtomPosition(number, place)
        mol.AddConformer(conformer)
        blocks.append(Chem.MolToMolBlock(mol) + "$$$$\n")
    (tmp_path / "chains.sdf").write_text("".join(blocks))
    convert([tmp_path / "chains.sdf"], tmp_path / "data")
    output = tmp_path / "labels.csv"
    script = ["benchmarks/geometry_labels.py", tmp_path / "data", "--output", output]
    subprocess.run([sys.executable, *script], check=True, cwd=ROOT)
    with open(output, newline="") as file:
        rows = [[row["radius_of_gyration"], row["distance_1_4"]] for row in csv.DictReader(file)]
    # The masses are equal: the root mean square distance from the centre.
    expected = [[math.sqrt(1.25 + 0.25), math.sqrt(10)], [math.sqrt(1.25 + 0.25), 3.0]]
    assert [[float(label) for label in row] for row in rows[:2]] == [
        pytest.approx(labels, abs=1e-4) for labels in expected
    ]
    assert float(rows[2][0]) == pytest.approx(math.sqrt(2 / 3 + 2 / 9), abs=1e-4)
    assert rows[2][1] == ""
