"""benchmarks/sample_smiles.py: the same molecules each time, none twice."""

import gzip
import subprocess
import sys

from fixtures.paths import ROOT


def test_molecules_are_drawn_without_replacement_in_their_order(tmp_path):
    lines = [f"as found\t{'C' * n}" for n in range(1, 41)]
    (tmp_path / "all.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    script = [sys.executable, ROOT / "benchmarks/sample_smiles.py", tmp_path / "all.tsv.gz"]
    drawn = []
    for seed in ("0", "0", "1"):
        output = tmp_path / "some.smi"
        given = ["--number", "10", "--seed", seed, "--output", output]
        subprocess.run([*script, *given], check=True, cwd=ROOT)
        drawn.append([len(line) for line in output.read_text().splitlines()])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10 and drawn[0] == sorted(drawn[0])
    assert all(1 <= length <= 40 for length in drawn[0])
