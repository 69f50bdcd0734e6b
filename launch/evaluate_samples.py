"""Compare sampled conformers, or bonds that were found, with references and with other programs.

python launch/evaluate_samples.py [conformers|bonds] --checkpoint DIR --references DIR --output FILE

Prints one table. A command line that begins with an option compares conformers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msde.cli import OneLineParser, check_exist, from_arguments, report_errors
from msde.data.manifest import check_present
from msde.data_tools import options as shared


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde evaluate_samples {} --checkpoint run --references data --output figures.json"
    parser = OneLineParser(description=__doc__, example=example.format("conformers"))
    commands = parser.add_subparsers(dest="command", required=True, help="what is compared")
    for name, add_others in shared.COMPARISONS.items():
        command = commands.add_parser(name, help=f"compare {name}", example=example.format(name))
        add = command.add_argument
        add("--checkpoint", type=Path, required=True, metavar="DIR", help="weights, or a run")
        add("--references", type=Path, required=True, metavar="DIR", help="shards with geometry")
        add("--output", type=Path, required=True, metavar="FILE", help="all figures, as JSON")
        add("--limit", type=int, metavar="N", help="take this many references; default: all")
        add_others(command)
    return parser


def main() -> None:
    """Parse, compare and print the table."""
    words = sys.argv[1:]
    if words and words[0].startswith("--") and words[0] != "--help":
        words.insert(0, "conformers")
    arguments = make_parser().parse_args(words)
    check_exist(arguments.checkpoint)
    check_present(arguments.references)
    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models import bond_comparison, comparison
    from msde.sampling import bonds, conformers

    given = vars(arguments)
    common = {name: given[name] for name in ("checkpoint", "references", "output", "limit")}
    if arguments.command == "bonds":
        options = from_arguments(bonds.BondOptions, arguments)
        print(bond_comparison.compare_bonds(**common, options=options, noises=given["noise"]))
    else:
        common |= {name: given[name] for name in ("counts", "starts", "pictures", "posebusters")}
        sampling = from_arguments(conformers.ConformerOptions, arguments)
        print(comparison.compare(**common, sampling=sampling))


if __name__ == "__main__":
    report_errors(main)
