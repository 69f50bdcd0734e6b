"""Sample conformers of molecules with a pretrained model.

python launch/sample.py conformers --checkpoint DIR --input FILE --output FILE.sdf --num 10

Molecules are sampled without hydrogens, which RDKit then adds to the positions. By default samples
start from conformers of ETKDG, which the model refines; --start noise needs none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from msde.cli import OneLineParser, check_exist, report_errors
from msde.data_tools.options import add_reader_options, reader_options


def main() -> None:
    """Parse, sample and write one file."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="conformers")
    conformers = commands.add_parser("conformers", help="conformers of molecules, as an SD file")
    add = conformers.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="weights, or a run")
    add("--input", type=Path, required=True, metavar="FILE", help="or a folder of shards")
    add("--output", type=Path, required=True, metavar="FILE", help=".sdf or .sdf.gz")
    add("--num", type=int, default=10, help="conformers of each molecule")
    add("--start", choices=("etkdg", "noise"), default="etkdg", help="what is refined")
    add("--std", type=float, default=0.7, help="A of noise that is added to ETKDG's conformers")
    add("--steps", type=int, default=20, help="of the sampler")
    add("--sampler", default="dpm_solver_2m", help="see msde.sampling.samplers.SAMPLERS")
    add("--seed", type=int, default=0)
    add("--relax", action="store_true", help="relax the conformers by MMFF94 afterwards")
    add_reader_options(conformers)
    arguments = parser.parse_args()
    options = reader_options(arguments)
    check_exist(arguments.checkpoint, arguments.input)

    from msde.cluster import process

    process.prepare()
    from msde.data_tools.generation import conformers_of_file
    from msde.sampling.conformers import ConformerOptions

    names = ("num", "start", "std", "steps", "sampler", "seed", "relax")
    sampling = ConformerOptions(**{name: getattr(arguments, name) for name in names})
    names = ("checkpoint", "input", "output", "format")
    paths = {name: getattr(arguments, name) for name in names}
    conformers_of_file(**paths, sampling=sampling, options=options)


if __name__ == "__main__":
    report_errors(main)
