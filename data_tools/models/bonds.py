"""Bonds of the atoms and positions in a file, as an SD file.

Bonds that the input has are not used. Each record is a molecule with its positions and, as far as
they show it, stereochemistry; the title is the molecule's name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem
from tqdm import tqdm

from msde.chem.parsing import silence_rdkit
from msde.chem.vocabulary import MoleculeError
from msde.files import write_atomically
from msde.inference.pretrained import load
from msde.sampling.bonds import Bonded, BondOptions, Geometry, find_bonds

from ..options import AUTO, Options
from ..parsing.perception import CHARGE
from ..sets.exporting import open_sd_file, set_title
from .generation import check_output, molecules_of, report_failed

CHUNK = 256  # molecules that are handled together


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
        MsdeError: the input or the model cannot be read, or the output cannot be written.
    """
    check_output(output)
    silence_rdkit()
    model = load(checkpoint).model
    reading = replace(options, perceive_bonds=False, charge=None)
    molecules, names = molecules_of(input, format, reading)
    several = sum(isinstance(m, Chem.Mol) and m.GetNumConformers() > 1 for m in molecules)
    if several:
        print(f"{several} molecules have several conformers, of which the first is used")
    failed: list[str] = []

    def write(path: Path) -> None:
        with (
            open_sd_file(path, is_compressed=output.suffix == ".gz") as file,
            tqdm(total=len(names), disable=None) as bar,
        ):
            for first in range(0, len(names), CHUNK):
                given = [_geometry(mol, options.charge) for mol in molecules[first:][:CHUNK]]
                good = [g for g in given if isinstance(g, Geometry)]
                found = find_bonds(model, good, finding)
                for number, geometry in enumerate(given, start=first):
                    bar.update()
                    one = next(found) if isinstance(geometry, Geometry) else Bonded(None, geometry)
                    if one.mol is None:
                        failed.append(f"{names[number] or f'molecule {number + 1}'}: {one.reason}")
                        continue
                    set_title(one.mol, names[number])
                    file.write(f"{Chem.MolToMolBlock(one.mol)}$$$$\n".encode())

    write_atomically(output, write)
    report_failed("bonds", failed)
    print(f"{output}: bonds of {len(names) - len(failed)} of {len(names)} molecules")


def _geometry(mol: Chem.Mol | MoleculeError, charge: int | None) -> Geometry | str:
    """Return atoms, positions and charge of a molecule, or the reason why it has none."""
    if isinstance(mol, MoleculeError):
        return str(mol)
    if not mol.GetNumConformers():
        return "no positions"
    return geometry_of(mol, charge)


def geometry_of(mol: Chem.Mol, charge: int | None = None) -> Geometry:
    """Return atoms and positions of a molecule; its own charge, unless zero, overrides `charge`."""
    z = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], np.int64)
    own = mol.GetIntProp(CHARGE) if mol.HasProp(CHARGE) else Chem.GetFormalCharge(mol)
    return Geometry(z, mol.GetConformer().GetPositions(), own or charge or 0)
