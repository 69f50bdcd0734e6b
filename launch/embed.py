"""Embed the molecules of a file or of a folder of shards with a pretrained model.

python launch/embed.py --checkpoint DIR --input FILE --output FILE.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from msde.cli import OneLineParser, report_errors
from msde.cluster import process


def main() -> None:
    """Parse, embed and write one .npz."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR")
    add("--input", type=Path, required=True, metavar="FILE", help="or a folder")
    add("--output", type=Path, required=True, metavar="FILE.npz")
    add("--view", choices=("2d", "3d", "both"), default="both", help="which encoder")
    add("--level", choices=("graph", "node"), default="graph", help="a row a molecule, or an atom")
    add("--keep-hydrogens", action="store_true", help="default: remove them")
    add("--trust-pickle", action="store_true", help="read pickles, which can run any program")
    arguments = parser.parse_args()

    process.prepare()
    from msde.data_tools.embedding import embed_file

    embed_file(**vars(arguments))


if __name__ == "__main__":
    report_errors(main)
