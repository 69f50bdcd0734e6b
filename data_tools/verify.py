"""Check a data set: every file, every block, every field; or the files of a run or of weights.

python -m data_tools.verify DIR [--quick]

Each problem is a line that names the shard and the block; the exit code is 6 if there are any.
Files whose SHA-256 is not the recorded one are never opened with LMDB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.data.manifest import check_present
from msde.errors import DataDamaged

from .lazy import offers
from .runs import is_run

__getattr__ = offers(f"{__package__}.sets.verification", "verify", "molecule_problems")


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(description=__doc__, example="msde verify data --quick")
    parser.add_argument("root", type=Path, metavar="DIR", help="a data set, a run or weights")
    parser.add_argument("--quick", action="store_true", help="do not read the contents of shards")
    return parser


def main() -> None:
    """Parse the command line, verify and print."""
    arguments = make_parser().parse_args()
    a_run = is_run(arguments.root)
    if not a_run:
        check_present(arguments.root)
    from msde.data.manifest import read_manifest

    from .sets.verification import verify

    found = False
    for problem in verify(arguments.root, arguments.quick):
        found = True
        print(problem)
    if found:
        sys.exit(DataDamaged.exit_code)
    if a_run:
        print(f"{arguments.root}: all files are as written")
        return
    manifest = read_manifest(arguments.root)
    print(
        f"{arguments.root}: {manifest['molecules']} molecules in {len(manifest['shards'])} shards, "
        f"{'sizes and index are' if arguments.quick else 'all'} as written"
    )


if __name__ == "__main__":
    report_errors(main)
