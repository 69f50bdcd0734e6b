"""Divide data sets into a training and a test set by Bemis-Murcko scaffold.

python -m data_tools.split DIR... --output DIR [--fraction 0.1] [--seed 0]

DIR/train and DIR/test are data sets. Molecules of one scaffold are in the same part, those without
rings by their own SMILES.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present

from .lazy import offers

__getattr__ = offers(f"{__package__}.sets.splitting", "split")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        description=__doc__, example="msde split data --output parts --fraction 0.1"
    )
    parser.add_argument("roots", nargs="+", type=Path, metavar="DIR", help="data sets")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the two data sets"
    )
    parser.add_argument(
        "--fraction", type=float, default=0.1, metavar="F", help="share of the test set, 0 to 1"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of scaffolds"
    )
    return parser


def main() -> None:
    """Parse the command line and split."""
    arguments = make_parser().parse_args()
    for root in arguments.roots:
        check_present(root)
    from .sets.splitting import split

    counts, unknown = split(**vars(arguments))
    print(f"{arguments.output}: {counts['train']} molecules in train, {counts['test']} in test")
    if unknown:
        print(f"{unknown} molecules that RDKit cannot rebuild are in train")


if __name__ == "__main__":
    report_errors(main)
