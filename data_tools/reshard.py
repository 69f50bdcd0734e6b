"""Rewrite a data set with the same molecules in the same order, in shards of another size.

python -m data_tools.reshard DIR --output DIR --shard-molecules N
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present

from .lazy import offers

__getattr__ = offers(f"{__package__}.sets.resharding", "reshard")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        description=__doc__, example="msde reshard data --output larger --shard-molecules 100000"
    )
    parser.add_argument("root", type=Path, metavar="DIR", help="a data set")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the new data set"
    )
    parser.add_argument("--shard-molecules", type=int, metavar="N", help="default: as for convert")
    parser.add_argument("--block-molecules", type=int, metavar="N", help="default: as for convert")
    return parser


def main() -> None:
    """Parse the command line and cut."""
    arguments = make_parser().parse_args()
    check_present(arguments.root)
    from msde.data.shards import ShardDataset

    from .sets.resharding import reshard

    count = reshard(**{name: v for name, v in vars(arguments).items() if v is not None})
    shards = len(ShardDataset(arguments.output).manifest["shards"])
    print(f"{arguments.output}: {count} molecules in {shards} shards")


if __name__ == "__main__":
    report_errors(main)
