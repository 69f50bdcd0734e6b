"""Compare sampled conformers, or bonds that were found, with references and with other programs.

python launch/evaluate_samples.py --checkpoint DIR --references DIR --output FILE.json
python launch/evaluate_samples.py bonds --checkpoint DIR --references DIR --output FILE.json

Prints one table. Conformers: MAT-R by number of conformers K and by size, stereochemistry, lengths
and angles. Bonds: exact graphs and F1, from positions with noise.
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
    add("what", nargs="?", choices=("conformers", "bonds"), default="conformers")
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="weights, or a run")
    add("--references", type=Path, required=True, metavar="DIR", help="shards with geometry")
    add("--output", type=Path, required=True, metavar="FILE", help="all figures, as JSON")
    add("--limit", type=int, help="take this many references; default: all")
    add("--counts", type=int, nargs="+", default=[1, 10], help="conformers of each molecule")
    add("--std", type=float, default=0.7, help="A of noise that is added to ETKDG's conformers")
    add("--noise", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2], help="A; for bonds")
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
    from msde.data_tools.models.bond_comparison import compare_bonds
    from msde.data_tools.models.comparison import compare
    from msde.sampling.bonds import BondOptions
    from msde.sampling.conformers import ConformerOptions

    given = vars(arguments)
    common = {name: given[name] for name in ("checkpoint", "references", "output", "limit")}
    options = {name: given[name] for name in ("steps", "sampler", "seed")}
    if arguments.what == "bonds":
        print(compare_bonds(**common, options=BondOptions(**options), noises=arguments.noise))
        return
    sampling = ConformerOptions(**options, std=arguments.std)
    names = ("counts", "pictures", "posebusters")
    print(compare(**common, sampling=sampling, **{name: given[name] for name in names}))


if __name__ == "__main__":
    report_errors(main)
