"""Describe a data set in numbers and as a picture.

python -m data_tools.describe DIR [--output FILE.png]
python -m data_tools.describe DIR --json

Of a large data set evenly spaced blocks are sampled; the first line says how many molecules. With
--json one object is printed: the numbers of molecules and conformers, `labels` (name: unit), how
many molecules have `forces` and their unit, `taken` (role and column or field of the source),
`left_out` (column or field: reason), rejects and notes by reason.
"""

from __future__ import annotations

import json
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present
from msde.errors import MsdeError

from .lazy import offers

__getattr__ = offers(f"{__package__}.sets.description", "describe", "summary")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(description=__doc__, example="msde describe data --output data.png")
    parser.add_argument("root", type=Path, metavar="DIR", help="a data set")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="also draw a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def main() -> None:
    """Parse the command line, describe and print."""
    arguments = make_parser().parse_args()
    if arguments.output and arguments.output.suffix != ".png":
        raise MsdeError(f"--output {arguments.output} should end in .png")
    check_present(arguments.root)
    from .sets.description import describe, summary

    if arguments.json:
        print(json.dumps(summary(arguments.root), indent=1))
        return
    from .pipeline.summary import statistics
    from .sets.figure import draw

    stats = statistics(arguments.root)
    print("\n".join(describe(stats)))
    if arguments.output:
        draw(stats, arguments.root.resolve().name, arguments.output)
        print(f"\n{arguments.output}")


if __name__ == "__main__":
    report_errors(main)
