"""Sample conformers of molecules, or find the bonds of positions, with a pretrained model.

python launch/sample.py conformers|bonds --input FILE --output FILE.sdf
Conformers are sampled without hydrogens, which RDKit adds; by default they start from ETKDG's.
"""

from __future__ import annotations

from pathlib import Path

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, from_arguments, report_errors
from msde.config.choices import CLASSIFIER
from msde.data_tools import options as shared


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    example = "msde sample {0} --input molecules.sdf --output {0}.sdf"
    parser = OneLineParser(description=__doc__, example=example.format("conformers"))
    commands = parser.add_subparsers(dest="command", required=True, help="what is made")
    for name, others in (("conformers", ()), ("bonds", (CLASSIFIER,))):
        command = commands.add_parser(name, help=f"write {name}", example=example.format(name))
        add, shipped = command.add_argument, shipped_checkpoint(name)
        add("--checkpoint", type=Path, default=shipped, metavar="DIR", help="default: shipped")
        add("--input", type=Path, required=True, metavar="FILE", help="molecules, or shards")
        add("--output", type=Path, required=True, metavar="FILE", help=".sdf or .sdf.gz")
        shared.add_sampler_options(command, *others)
        shared.add_reader_options(command, hydrogens=False)
    shared.add_conformer_options(commands.choices["conformers"])
    add = commands.choices["bonds"].add_argument
    add("--types", action="store_true", help="find atom types, too; those of the file are not used")
    return parser


def main() -> None:
    """Parse, sample and write one file."""
    given = make_parser().parse_args()
    options = shared.reader_options(given)
    check_exist(given.checkpoint, given.input)

    from msde.data_tools.models.results import check_sd_output

    check_sd_output(given.output)
    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models import bonds, generation
    from msde.sampling.bonds import BondOptions
    from msde.sampling.conformers import ConformerOptions

    run, kind = generation.conformers_of_file, ConformerOptions
    if given.command == "bonds":
        run, kind = bonds.bonds_of_file, BondOptions
    files = given.checkpoint, given.input, given.output
    run(*files, from_arguments(kind, given), given.format, options)


if __name__ == "__main__":
    report_errors(main)
