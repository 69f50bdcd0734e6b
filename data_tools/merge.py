"""Merge data sets.

python -m data_tools.merge DIR... --output DIR

Their labels must agree, by name and unit; `--labels union` takes all of them, and labels that a
data set does not have are missing for its molecules.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present

from .lazy import names_of

__getattr__ = names_of(f"{__package__}.sets.merging", "merge")


def main() -> None:
    """Parse the command line and merge."""
    parser = OneLineParser(prog="data_tools.merge", description=__doc__)
    parser.add_argument("roots", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--labels",
        choices=("same", "union"),
        default="same",
        help="same: all data sets have the same; union: missing values are NaN",
    )
    parser.add_argument("--skip-duplicates", action="store_true", help="keep the first of each id")
    arguments = parser.parse_args()
    for root in arguments.roots:
        check_present(root)
    from .sets.merging import merge

    count = merge(**vars(arguments))
    print(f"{arguments.output}: {count} molecules of {len(arguments.roots)} data sets")


if __name__ == "__main__":
    report_errors(main)
