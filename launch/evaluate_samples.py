"""Compare sampled conformers with reference geometries and with RDKit's conformers.

python launch/evaluate_samples.py --checkpoint DIR --references DIR --output FILE.json

Prints one table: MAT-R by number of conformers K and by size, stereochemistry, lengths and angles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from msde.cli import OneLineParser, check_exist, report_errors
from msde.data.manifest import check_present


def main() -> None:
    """Parse, compare and print the table."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="weights, or a run")
    add("--references", type=Path, required=True, metavar="DIR", help="shards with geometry")
    add("--output", type=Path, required=True, metavar="FILE", help="all figures, as JSON")
    add("--limit", type=int, help="take this many references; default: all")
    add("--counts", type=int, nargs="+", default=[1, 10], help="conformers of each molecule")
    add("--std", type=float, default=0.7, help="A of noise that is added to ETKDG's conformers")
    add("--steps", type=int, default=20, help="of the sampler")
    add("--sampler", default="dpm_solver_2m", help="see msde.sampling.samplers.SAMPLERS")
    add("--seed", type=int, default=0)
    add("--pictures", type=Path, metavar="DIR", help="draw PNG files there")
    add("--posebusters", action="store_true", help="share of first samples that pass its checks")
    arguments = parser.parse_args()
    check_exist(arguments.checkpoint)
    check_present(arguments.references)

    from msde.cluster import process

    process.prepare()
    from msde.data_tools.comparison import compare
    from msde.sampling.conformers import ConformerOptions

    names = ("std", "steps", "sampler", "seed")
    sampling = ConformerOptions(**{name: getattr(arguments, name) for name in names})
    names = ("checkpoint", "references", "output", "limit", "counts", "pictures", "posebusters")
    print(compare(**{name: getattr(arguments, name) for name in names}, sampling=sampling))


if __name__ == "__main__":
    report_errors(main)
