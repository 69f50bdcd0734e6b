"""Compare sampled conformers, or bonds that were found, with references and with other programs.

python launch/evaluate_samples.py [bonds] --checkpoint DIR --references DIR --output FILE.json

Prints one table, of MAT-R, stereochemistry and geometry, or of exact graphs and F1 of bonds.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, check_exist, from_arguments, report_errors
from msde.data.manifest import check_present
from msde.data_tools.options import add_comparison_options, add_sampler_options


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde evaluate_samples --checkpoint run --references data --output figures.json"
    parser, noises = OneLineParser(description=__doc__, example=example), [0.0, 0.05, 0.1, 0.2]
    add, kinds = parser.add_argument, ("conformers", "bonds")
    add("what", nargs="?", choices=kinds, default="conformers", help="what is compared")
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="weights, or a run")
    add("--references", type=Path, required=True, metavar="DIR", help="shards with geometry")
    add("--output", type=Path, required=True, metavar="FILE", help="all figures, as JSON")
    add("--limit", type=int, metavar="N", help="take this many references; default: all")
    add_comparison_options(parser)
    add("--types", action="store_true", help="for bonds: one more row, with atom types found, too")
    add("--noise", type=float, nargs="+", default=noises, metavar="A", help="Angstrom; for bonds")
    add_sampler_options(parser)
    add("--pictures", type=Path, metavar="DIR", help="draw PNG files there")
    add("--posebusters", action="store_true", help="share of first samples that pass its checks")
    return parser


def main() -> None:
    """Parse, compare and print the table."""
    arguments = make_parser().parse_args()
    check_exist(arguments.checkpoint)
    check_present(arguments.references)
    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models import bond_comparison, comparison
    from msde.sampling import bonds, conformers

    given = vars(arguments)
    common = {name: given[name] for name in ("checkpoint", "references", "output", "limit")}
    if arguments.what == "bonds":
        options = from_arguments(bonds.BondOptions, arguments)
        print(bond_comparison.compare_bonds(**common, options=options, noises=given["noise"]))
    else:
        common |= {name: given[name] for name in ("counts", "starts", "pictures", "posebusters")}
        sampling = from_arguments(conformers.ConformerOptions, arguments)
        print(comparison.compare(**common, sampling=sampling))


if __name__ == "__main__":
    report_errors(main)
