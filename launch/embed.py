"""Embed the molecules of a file or of a folder of shards with a pretrained model.

python launch/embed.py --input FILE --output FILE.npz [--checkpoint DIR]

The output has a row for each molecule of the input, in its order. An .npz holds h_2d and h_3d (NaN
where there is no vector), name and line (of shards name and uid), reason (empty for vectors), y
with label_names and label_units, and with --level node ptr: molecule i has rows ptr[i]:ptr[i + 1].
A .csv has the columns name, line (or uid), reason, the labels, h_2d_0, h_2d_1, ....
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, report_errors
from msde.config.schema import Readout
from msde.data_tools.options import add_reader_options, reader_options


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde embed --input molecules.csv --output embeddings.csv --view 2d"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    weights = "weights, or a run; default: shipped"
    add("--checkpoint", type=Path, default=shipped_checkpoint(), metavar="DIR", help=weights)
    add("--input", type=Path, required=True, metavar="FILE", help="molecules, or shards")
    add("--output", type=Path, required=True, metavar="FILE", help=".npz or .csv")
    add("--view", choices=("2d", "3d", "both"), default="both", help="bonds, positions, or both")
    add("--level", choices=("graph", "node"), default="graph", help="a row a molecule, or an atom")
    layers = "layers of the 2D encoder; concat: all; default: those that pretraining had"
    add("--readout", choices=get_args(Readout), default="pretrained", help=layers)
    add("--projector", type=Path, metavar="DIR", help="also a folder for TensorBoard's projector")
    add_reader_options(parser)
    return parser


def main() -> None:
    """Parse, embed and write one file."""
    arguments = make_parser().parse_args()
    options = reader_options(arguments)
    check_exist(arguments.checkpoint, arguments.input)

    from msde.data_tools.models.results import check_vector_output

    check_vector_output(arguments.output, arguments.level, arguments.projector)
    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models.embedding import embed_file

    names = ("checkpoint", "input", "output", "view", "level", "format", "projector", "readout")
    embed_file(**{name: getattr(arguments, name) for name in names}, options=options)


if __name__ == "__main__":
    report_errors(main)
