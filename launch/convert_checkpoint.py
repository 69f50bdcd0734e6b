"""Convert checkpoints of the published implementation to ours, and back.

python launch/convert_checkpoint.py --from-published model_complete.pth --output DIR [key=value ...]
python launch/convert_checkpoint.py --to-published DIR --output model_complete.pth
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.errors import MsdeError


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde convert_checkpoint --from-published model_complete.pth --output weights"
    parser = OneLineParser(description=__doc__, example=example)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from-published", type=Path, metavar="FILE", help="of the published code"
    )
    direction.add_argument("--to-published", type=Path, metavar="DIR", help="weights of ours")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR|FILE", help="what is written"
    )
    undetermined = "settings that the tensors do not determine; all of them are printed"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=undetermined)
    return parser


def main() -> None:
    """Parse and convert in one of the two directions."""
    arguments = make_parser().parse_intermixed_args()
    given = arguments.from_published or arguments.to_published
    if not given.exists():
        raise MsdeError(f"{given} cannot be read: there is no such file or folder")
    # torch takes seconds to import, and neither --help nor a wrong path needs it.
    from msde.checkpoints.published_files import from_published, to_published

    if arguments.from_published is not None:
        print(from_published(arguments.from_published, arguments.output, arguments.overrides))
    elif arguments.overrides:
        raise MsdeError("--to-published takes no key=value")
    else:
        print(to_published(arguments.to_published, arguments.output))


if __name__ == "__main__":
    report_errors(main)
