"""GEOM (Axelrod & Gómez-Bombarelli 2022, doi:10.1038/s41597-022-01288-4), many conformers each.

`*_crude.msgpack` is a stream of maps from SMILES to what is known of a molecule; bond orders are
those of the SMILES, put on the atoms that are near each other. The `.pickle` files of
`rdkit_folder` hold one molecule each, with RDKit's bonds, and are loaded if they are trusted.

All conformers of a molecule go into one record, in the order of the file; those whose bonds or
stereochemistry are not the first's (some reacted) are left out. Labels are those of the ensemble;
energies and weights of single conformers have no place in a record.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.chemistry import (
    agreeing_conformers,
    check_radicals,
    merge_conformers,
    remove_hydrogens,
)
from ..parsing.perception import bonds_of_smiles, connect
from . import (
    Facts,
    Label,
    Options,
    Parsed,
    RawMolecule,
    check_trusted,
    content,
    load_pickle,
    needs,
    open_bytes,
    source_name,
)

KEEP_HYDROGENS = False
UNITS = {
    "lowestenergy": "Ha",
    "ensembleenergy": "kcal/mol",
    "ensembleentropy": "cal/mol/K",
    "ensemblefreeenergy": "kcal/mol",
    "poplowestpct": "%",
    "temperature": "K",
    "totalconfs": "",
    "uniqueconfs": "",
}
NOTE = "energies and Boltzmann weights of single conformers are not kept"
PICKLES = (".pickle", ".pkl")


@dataclass(frozen=True)
class Ensemble:
    """The conformers of one molecule."""

    smiles: str
    atoms: np.ndarray  # (num_conformers, num_atoms, 4): atomic number and position in A


def recognises(path: Path) -> bool:
    """Tell by the name."""
    return source_name(path).lower().endswith((".msgpack", *PICKLES))


def pickled(path: Path) -> bool:
    """Tell by the name."""
    return source_name(path).lower().endswith(PICKLES)


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Return the labels of an ensemble; others may be chosen by name."""
    check_trusted(sys.modules[__name__], paths, options)
    return Facts(labels=_labels(options), notes=(NOTE,))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each molecule; its name is its SMILES."""
    check_trusted(sys.modules[__name__], [path], options)
    source = source_name(path)
    if pickled(path):
        with open_bytes(path) as file:
            yield RawMolecule(source, 1, source.rpartition(".")[0], (path, file.read()))
        return
    for number, (smiles, known) in enumerate(_entries(path), start=1):
        payload: Ensemble | MoleculeError
        y: tuple[float, ...] = ()
        try:
            payload = Ensemble(smiles, _atoms(known))
            y = _values(known, _labels(options))
        except MoleculeError as error:
            payload = error
        yield RawMolecule(source, number, smiles, payload, y)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Unite the conformers on one molecule."""
    payload = content(raw)
    y = raw.y
    if isinstance(payload, Ensemble):
        mol, dropped = _from_positions(payload)
    else:
        path, data = payload
        check_trusted(sys.modules[__name__], [path], options)
        known = load_pickle(data)
        y = _values(known, _labels(options))
        mol, dropped = _from_mols(known)
    if not options.keep_radicals:
        check_radicals(mol)
    if not options.hydrogens(KEEP_HYDROGENS):
        mol, _ = remove_hydrogens(mol)
    return Parsed(mol, y, dropped=dropped)


def _from_positions(ensemble: Ensemble) -> tuple[Chem.Mol, tuple[tuple[int, str], ...]]:
    numbers = ensemble.atoms[0, :, 0].astype(np.int64)
    positions = ensemble.atoms[:, :, 1:]
    bonds = connect(numbers, positions[0])
    mol = bonds_of_smiles(numbers, bonds, ensemble.smiles)
    same, dropped = [], []
    for number, atoms in enumerate(ensemble.atoms, start=1):
        if (atoms[:, 0] == numbers).all() and connect(numbers, atoms[:, 1:]) == bonds:
            same.append(number)
        else:
            dropped.append((number, "conformer: atoms or bonds differ from the first's"))
    mol, others = agreeing_conformers(mol, positions[np.array(same) - 1])
    dropped += [(same[place - 1], reason) for place, reason in others]
    return mol, tuple(sorted(dropped))


def _from_mols(known: dict[str, Any]) -> tuple[Chem.Mol, tuple[tuple[int, str], ...]]:
    try:
        mols = [conformer["rd_mol"] for conformer in known["conformers"]]
    except (KeyError, TypeError) as error:
        raise MoleculeError(f"cannot be parsed: no {error}") from error
    if not mols or not all(isinstance(mol, Chem.Mol) for mol in mols):
        raise MoleculeError("no 3D conformer")
    for mol in mols:
        Chem.AssignStereochemistryFrom3D(mol)
    return merge_conformers(mols, range(1, len(mols) + 1))


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield SMILES and what is known of each; memory holds one molecule of the stream."""
    if source_name(path).endswith(".tar"):
        raise MsdeError(f"{path} is an archive; unpack it and give the .msgpack inside")
    msgpack = needs("msgpack")
    with open_bytes(path) as file:
        stream = msgpack.Unpacker(file, max_buffer_size=0, strict_map_key=False)
        try:
            while (count := _map_header(stream, msgpack)) is not None:
                for _ in range(count):
                    yield str(stream.unpack()), stream.unpack()
        except msgpack.OutOfData as error:
            raise MsdeError(f"{path} is cut off") from error
        except (msgpack.UnpackException, ValueError) as error:
            raise MsdeError(f"{path} cannot be read as MessagePack: {error}") from error


def _map_header(stream: Any, msgpack: Any) -> int | None:
    try:
        return stream.read_map_header()
    except msgpack.OutOfData:
        return None


def _atoms(known: Any) -> np.ndarray:
    try:
        atoms = np.array([conformer["xyz"] for conformer in known["conformers"]], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise MoleculeError(f"cannot be parsed: {error}") from error
    if atoms.ndim != 3 or atoms.shape[0] == 0 or atoms.shape[2] != 4:
        raise MoleculeError("no conformers with rows of atomic number and position")
    return atoms


def _labels(options: Options) -> tuple[Label, ...]:
    chosen = options.chosen_labels()
    if chosen is None:
        return tuple(Label(name, unit) for name, unit in UNITS.items())
    return tuple(Label(label.name, label.unit or UNITS.get(label.name, "")) for label in chosen)


def _values(known: dict[str, Any], labels: tuple[Label, ...]) -> tuple[float, ...]:
    found = (known.get(label.name) for label in labels)
    return tuple(float(v) if isinstance(v, (int, float)) else math.nan for v in found)
