"""Merge data sets.

python -m data_tools.merge DIR... --output DIR [--without DIR]

Their labels must agree, by name and unit; `--labels union` takes all of them, and labels that a
data set does not have are missing for its molecules. `--without` leaves out what another data set
has, such as the molecules of a task that a pretrained model is tested on.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present

from .lazy import offers

__getattr__ = offers(f"{__package__}.sets.merging", "merge")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        description=__doc__, example="msde merge data more --output all --skip-duplicates"
    )
    parser.add_argument("roots", nargs="+", type=Path, metavar="DIR", help="data sets")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the new data set"
    )
    parser.add_argument(
        "--labels",
        choices=("same", "union"),
        default="same",
        help="same: all data sets have the same; union: missing values are NaN",
    )
    parser.add_argument(
        "--skip-duplicates", action="store_true", help="keep the first of equal ones"
    )
    parser.add_argument(
        "--without",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="leave out molecules with the 2D graph of one in this data set; can be repeated",
    )
    return parser


def main() -> None:
    """Parse the command line and merge."""
    arguments = make_parser().parse_args()
    for root in (*arguments.roots, *arguments.without):
        check_present(root)
    from msde.data.shards import ShardDataset

    from .sets.merging import merge

    count = merge(**vars(arguments))
    print(f"{arguments.output}: {count} molecules of {len(arguments.roots)} data sets")
    source = ShardDataset(arguments.output).manifest["source"]
    if arguments.skip_duplicates:
        print(f"{source['duplicates']['molecules']} molecules left out: duplicates of earlier ones")
    if arguments.without:
        print(
            f"{source['without']['molecules']} molecules left out: their 2D graphs are in --without"
        )
        if alone := source["without"]["not_compared"]:
            print(f"{alone} molecules kept without comparison: RDKit finds no InChIKey of them")


if __name__ == "__main__":
    report_errors(main)
