"""Write a data set as an SD file: names as titles, every conformer a record, labels as properties.

python -m data_tools.export DIR --output FILE.sdf[.gz] [--limit N]

Molecules without geometry are drawn in 2D, so that stereochemistry is kept; `data_tools.convert
--conformers 0` reads them back. Line ends in names become blanks. Omitted are molecules with
something that the vocabularies lack: bonds that are none of single, double, triple and aromatic,
charges beyond -5 to 5. They are listed in FILE.skipped.jsonl, each with its reason. A FILE that is
there is replaced.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present

from .lazy import offers

__getattr__ = offers(f"{__package__}.sets.exporting", "export", "sdf_records")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        description=__doc__, example="msde export data --output molecules.sdf --limit 100"
    )
    parser.add_argument("root", type=Path, metavar="DIR", help="a data set")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help=".sdf or .sdf.gz"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="write only the first N molecules")
    return parser


def main() -> None:
    """Parse the command line and export."""
    arguments = make_parser().parse_args()
    check_present(arguments.root)
    from .sets.exporting import export, left_out, skipped_path

    counts = export(**vars(arguments))
    print(f"{arguments.output}: {counts.pop('written', 0)} molecules")
    for what in left_out(arguments.root, arguments.limit):
        print(f"  not written: {what}")
    for reason, count in counts.most_common(10):
        print(f"  {count} skipped: {reason}")
    if counts:
        print(f"  which ones: {skipped_path(arguments.output)}")


if __name__ == "__main__":
    report_errors(main)
