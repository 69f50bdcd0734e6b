"""Predict a property of the molecules of a file with a fine-tuned model.

python launch/predict.py --model DIR --input FILE --output FILE.csv

The table has a row for each molecule of the input, in its order: name and line (of shards name and
uid), a column for each target (of several seeds their mean, and their deviation as NAME_std) and
the reason where there is no prediction.
"""

from __future__ import annotations

from pathlib import Path

from msde.cli import OneLineParser, check_exist, report_errors
from msde.data_tools.options import add_reader_options, reader_options


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde predict --model tuned --input molecules.csv --output predicted.csv"
    parser = OneLineParser(description=__doc__, example=example)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="--output of launch/finetune.py")
    add("--input", type=Path, required=True, metavar="FILE", help="molecules, or shards")
    add("--output", type=Path, required=True, metavar="FILE", help=".csv")
    add_reader_options(parser)
    return parser


def main() -> None:
    """Parse, predict and write one file."""
    arguments = make_parser().parse_args()
    options = reader_options(arguments)
    check_exist(arguments.model, arguments.input)

    from msde.data_tools.models.results import check_output

    check_output(arguments.output, ".csv")
    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models.prediction import predict_file

    names = ("model", "input", "output", "format")
    predict_file(**{name: getattr(arguments, name) for name in names}, options=options)


if __name__ == "__main__":
    report_errors(main)
