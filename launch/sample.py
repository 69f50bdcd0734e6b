"""Sample conformers of molecules, or find the bonds of positions, with a pretrained model.

python launch/sample.py conformers --input FILE --output FILE.sdf --num 10
python launch/sample.py bonds --input FILE.xyz --output FILE.sdf

Conformers are sampled without hydrogens, which RDKit adds; by default they start from ETKDG's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from msde import shipped_checkpoint
from msde.cli import OneLineParser, check_exist, report_errors
from msde.data_tools.options import add_reader_options, reader_options


def main() -> None:
    """Parse, sample and write one file."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="conformers|bonds")
    for name, sampler in (("conformers", "dpm_solver_2m"), ("bonds", "classifier")):
        command = commands.add_parser(name, help=f"write {name} to an SD file")
        add, shipped = command.add_argument, shipped_checkpoint(name)
        add("--checkpoint", type=Path, default=shipped, metavar="DIR", help="weights, or a run")
        add("--input", type=Path, required=True, metavar="FILE", help="or a folder of shards")
        add("--output", type=Path, required=True, metavar="FILE", help=".sdf or .sdf.gz")
        add("--sampler", default=sampler, help="docs/science.md lists them")
        add("--steps", type=int, default=20, help="of the sampler")
        add("--seed", type=int, default=0)
        add_reader_options(command)
    add = commands.choices["conformers"].add_argument
    add("--num", type=int, default=10, help="conformers of each molecule")
    add("--start", choices=("etkdg", "noise"), default="etkdg")
    add("--std", type=float, default=0.7, help="A of noise that is added to ETKDG's conformers")
    add("--relax", action="store_true", help="relax the conformers by MMFF94 afterwards")
    arguments = parser.parse_args()
    options = reader_options(arguments)
    check_exist(arguments.checkpoint, arguments.input)

    from msde.cluster import process

    process.prepare()
    from msde.data_tools.models.bonds import bonds_of_file
    from msde.data_tools.models.generation import conformers_of_file
    from msde.sampling.bonds import BondOptions
    from msde.sampling.conformers import ConformerOptions

    given = vars(arguments)
    paths = {name: given[name] for name in ("checkpoint", "input", "output", "format")}
    common = {name: given[name] for name in ("steps", "sampler", "seed")}
    if arguments.command == "bonds":
        return bonds_of_file(**paths, finding=BondOptions(**common), options=options)
    own = {name: given[name] for name in ("num", "start", "std", "relax")}
    conformers_of_file(**paths, sampling=ConformerOptions(**common, **own), options=options)


if __name__ == "__main__":
    report_errors(main)
