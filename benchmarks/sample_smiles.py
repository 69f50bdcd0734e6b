"""Draw molecules from a file of SMILES.

python benchmarks/sample_smiles.py INPUT --number N --output FILE.smi

INPUT has a molecule a line, with tabs between columns, and may be gzipped. The molecules are drawn
without replacement and keep their order.
"""

from __future__ import annotations

import argparse
import gzip
import random
from pathlib import Path

from msde.cli import report_errors
from msde.errors import MsdeError


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("--number", type=int, required=True, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = parser.parse_args()
    opened = gzip.open if given.input.suffix == ".gz" else open
    with opened(given.input, "rt", encoding="utf-8") as file:
        # The last column of PubChem's is the standardised SMILES.
        lines = [line.rstrip("\n").rpartition("\t")[2] for line in file if line.strip()]
    lines = lines[lines[0].lower() == "smiles" :]  # without a header
    if given.number > len(lines):
        raise MsdeError(f"{given.input} has {len(lines)} molecules, expected {given.number}")
    places = sorted(random.Random(given.seed).sample(range(len(lines)), given.number))
    given.output.write_text("".join(f"{lines[place]}\n" for place in places), encoding="utf-8")
    print(f"{given.output}: {given.number} of {len(lines)} molecules")


if __name__ == "__main__":
    report_errors(main)
