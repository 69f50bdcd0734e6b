"""Options of commands that read files of molecules: how the files are read.

Nothing that takes long to import is needed here, so that --help and wrong arguments are quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msde.cli import from_arguments
from msde.config.choices import CLASSIFIER, NOISES, SAMPLERS, STARTS, STD_ON_ETKDG
from msde.errors import MsdeError

AUTO = "auto"
# In this order `--format auto` asks them whether they recognise a file.
FORMATS = (
    "cxsmiles",
    "pcqm4mv2",
    "qm9",
    "ase",
    "md17",
    "xyz",
    "geom",
    "moleculenet",
    "pyg",
    "unimol",
    "fairchem",
    "sdf",
    "smiles",
)


@dataclass(frozen=True)
class Options:
    """Choices of the user; a format refuses those of SPECIAL that it cannot follow."""

    keep_hydrogens: bool | None = None  # None: the default of the format
    conformers: int = 1  # to make for molecules without geometry; 0: topology only
    max_atoms: int = 256  # memory of a slot grows with the square of its largest molecule
    smiles_column: str | None = None  # None: a column that is named like one
    name_column: str | None = None
    label_columns: tuple[str, ...] | None = None  # NAME or NAME=UNIT; None: all with numbers
    energy_key: str | None = None  # of files with several energies; None: the only one
    forces_key: str | None = None  # of files with several arrays of forces; None: the only one
    charge: int | None = None  # of every molecule whose file states none; None: zero
    encoding: str | None = None  # of text; None: found, see files.encoding_of
    delimiter: str | None = None  # of tables; None: found
    group_conformers: bool = False  # neighbours with the same title are one molecule
    keep_radicals: bool = False  # of formats in which they are mostly mistakes
    trust_pickle: bool = False
    perceive_bonds: bool = True  # False: atoms and positions are all that is needed

    def refuse(self, names: Collection[str], where: str) -> None:
        """Raise an MsdeError if the user gave one of the options `names`, of no use `where`."""
        for name in names:
            if getattr(self, name) not in (getattr(Options, name), None, (), 0):
                raise MsdeError(
                    f"--{name.replace('_', '-')} is of no use for {where}; leave it out"
                )

    def hydrogens(self, default: bool) -> bool:
        """Return whether to keep hydrogens, given the default of the format."""
        return default if self.keep_hydrogens is None else self.keep_hydrogens

    def chosen_labels(self, names: Collection[str] = ()) -> tuple[Label, ...] | None:
        """Return the labels that the user chose, or None: the reader finds them.

        Args:
            names: those of the file, which may hold equal signs.
        """
        if self.label_columns is None:
            return None
        parts = (column.rpartition("=") for column in self.label_columns)
        chosen = tuple(
            Label(text) if text in names or not name else Label(name.strip(), unit.strip())
            for text, (name, _, unit) in zip(self.label_columns, parts, strict=True)
        )
        found = [label.name for label in chosen]
        twice = next((name for name in found if found.count(name) > 1), None)
        if twice is not None:
            raise MsdeError(f"label {twice!r} is chosen twice; choose it once")
        return chosen


# What only some formats can follow.
GEOMETRY = ("energy_key", "forces_key", "charge")
TABLE = ("smiles_column", "name_column", "delimiter", "encoding")
SPECIAL = (*GEOMETRY, *TABLE, "conformers", "group_conformers")


@dataclass(frozen=True)
class Label:
    """A number that a data set holds for each molecule."""

    name: str
    unit: str = ""  # "" where the source does not say


def add_reader_options(parser: argparse.ArgumentParser, hydrogens: bool = True) -> None:
    """Add the options that say how the files of any format are read.

    Args:
        hydrogens: whether the user chooses if they are kept.
    """
    add = parser.add_argument
    add(
        "--format",
        default=AUTO,
        choices=(AUTO, *FORMATS),
        metavar="NAME",
        help="format of the file; auto: found by its name and content",
    )
    if hydrogens:
        chosen = argparse.BooleanOptionalAction
        add("--keep-hydrogens", action=chosen, help="default: as the format does")
    add("--group-conformers", action="store_true", help="merge neighbours of one title")
    add("--smiles-column", metavar="NAME", help="column of SMILES; default: found")
    add("--name-column", metavar="NAME", help="column of names; default: found")
    add("--label-columns", type=_names, metavar="NAME[=UNIT],...", help="default: all numbers")
    add(
        "--label-column", action="append", default=[], metavar="NAME[=UNIT]",
        help="a label whose name may hold commas; can be repeated",
    )  # fmt: skip
    add("--energy-key", metavar="NAME", help="which, if a file has several energies")
    add("--forces-key", metavar="NAME", help="which, if it has several arrays of forces")
    add("--charge", type=int, metavar="N", help="total charge where none is stated; default: 0")
    add("--encoding", metavar="NAME", help="encoding of text files; default: found")
    add("--delimiter", metavar="CHARACTER", help="between cells of a table; default: found")
    add("--trust-pickle", action="store_true", help="read pickles, which can run any program")


def add_std_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of the noise that sampling from ETKDG's conformers begins with."""
    noise = "noise on ETKDG's, in Angstrom"
    parser.add_argument("--std", type=float, default=STD_ON_ETKDG, metavar="A", help=noise)


def add_conformer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampled conformers."""
    add = parser.add_argument
    add("--num", type=int, default=10, metavar="N", help="conformers of each molecule")
    add("--candidates", type=int, default=1, metavar="N", help="samples made for each conformer")
    add("--start", choices=STARTS, default="etkdg", help="where sampling starts")
    add_std_option(parser)
    add("--relax", action="store_true", help="relax the conformers by MMFF94 afterwards")


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of conformers that are compared with references."""
    add, more = parser.add_argument, "of rows `clustered`, for each conformer; 1: no such rows"
    add("--counts", type=int, nargs="+", default=[1, 10], metavar="K", help="conformers")
    add("--candidates", type=int, default=4, metavar="N", help=more)
    add("--starts", nargs="+", choices=STARTS, default=STARTS, help="where sampling starts")
    add_std_option(parser)
    add("--pictures", type=Path, metavar="DIR", help="draw PNG files there")
    add("--posebusters", action="store_true", help="share of first samples that pass its checks")
    add_sampler_options(parser)


def add_bond_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of bonds that are compared with references."""
    add = parser.add_argument
    add("--types", action="store_true", help="one more row, with atom types found, too")
    add("--noise", type=float, nargs="+", default=list(NOISES), metavar="A", help="in Angstrom")
    add_sampler_options(parser, CLASSIFIER)
    parser.set_defaults(sampler="dpm_solver_2m")  # a row beside that of the classifier


# What is compared, and how its options are added.
COMPARISONS = {"conformers": add_comparison_options, "bonds": add_bond_comparison_options}


def add_sampler_options(parser: argparse.ArgumentParser, *others: str) -> None:
    """Add the options of a sampler.

    Args:
        others: names that `--sampler` takes besides those of samplers; the first is the default.
    """
    add, names = parser.add_argument, (*others, *SAMPLERS)
    default = others[0] if others else "dpm_solver_2m"
    add("--sampler", default=default, choices=names, metavar="NAME", help="see docs/science.md")
    add("--steps", type=int, default=20, metavar="N", help="steps of the sampler")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def reader_options(arguments: argparse.Namespace, **others: Any) -> Options:
    """Return the options that a command line gives to readers.

    Args:
        others: options that are no arguments of this command.

    Raises:
        MsdeError: a delimiter is more than one character.
    """
    if arguments.delimiter is not None and len(arguments.delimiter) != 1:
        raise MsdeError("--delimiter is one character; give a tab as $'\\t'")
    options = replace(from_arguments(Options, arguments), **others)
    if not arguments.label_column:
        return options
    labels = (*(options.label_columns or ()), *arguments.label_column)
    return replace(options, label_columns=labels)
