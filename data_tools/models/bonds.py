"""Bonds of the atoms and positions in a file, as an SD file.

Bonds that the input has are not used. Each record is a molecule with its positions and, as far as
they show it, stereochemistry; the title is the molecule's name. The property `line` (of shards
`uid`) says where the molecule stood, `note` what is unusual, where anything is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.vocabulary import MoleculeError
from msde.inference.pretrained import load
from msde.sampling.bonds import BondOptions, Geometry, find_bonds

from ..options import AUTO, Options
from ..parsing.chemistry import is_drawing
from ..parsing.perception import CHARGE
from ..sets.exporting import set_title
from .generation import molecules_of
from .results import check_sd_output, in_order, print_notes, sd_property, write_sd_results


def bonds_of_file(
    checkpoint: Path,
    input: Path,
    output: Path,
    finding: BondOptions,
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
) -> None:
    """Find the bonds of the molecules in a file, write an SD file and print a summary.

    Args:
        checkpoint: a folder of weights, or a run: then its best weights.
        input: a file with positions, or a folder of shards.
        output: .sdf or .sdf.gz.
        options: those of readers; `charge` is of molecules whose file states none but zero.

    Raises:
        MsdeError: the input or the model cannot be read, the output cannot be written, or no
            molecule has bonds.
    """
    check_sd_output(output)
    silence_rdkit()
    model = load(checkpoint).model
    reading = replace(options, perceive_bonds=False, charge=None, keep_hydrogens=True)
    read = molecules_of(input, format, reading)
    several = sum(isinstance(m, Chem.Mol) and m.GetNumConformers() > 1 for m in read.mols)
    if several:
        print(f"{several} molecules have several conformers, of which the first is used")
    given = [_geometry(mol, options.charge) for mol in read.mols]
    notes: dict[int, str] = {}

    def results() -> Iterator[str | MoleculeError]:
        found = in_order(given, lambda good: find_bonds(model, good, finding))
        for number, one in enumerate(found):
            if isinstance(one, MoleculeError):
                yield one
                continue
            set_title(one.mol, read.names[number])
            note = read.notes.get(number, "")
            if note:
                notes[number] = note
            properties = read.sources[number] + sd_property("note", note)
            yield f"{Chem.MolToMolBlock(one.mol)}{properties}$$$$\n"

    done = write_sd_results(output, "bonds", results(), read.where)
    print_notes("bonds found", read.where, {}, notes)
    print(f"{output}: bonds of {done} of {len(read.where)} molecules")


def _geometry(mol: Chem.Mol | MoleculeError, charge: int | None) -> Geometry | MoleculeError:
    """Return atoms, positions and charge of a molecule, or why it has none."""
    if isinstance(mol, MoleculeError):
        return mol
    if not mol.GetNumConformers():
        return MoleculeError("no positions")
    if is_drawing(mol):
        return MoleculeError("a flat drawing, no positions")
    return geometry_of(mol, charge)


def geometry_of(mol: Chem.Mol, charge: int | None = None) -> Geometry:
    """Return atoms and positions of a molecule; its own charge, unless zero, overrides `charge`."""
    z = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], np.int64)
    own = mol.GetIntProp(CHARGE) if mol.HasProp(CHARGE) else Chem.GetFormalCharge(mol)
    return Geometry(z, mol.GetConformer().GetPositions(), own or charge or 0)
