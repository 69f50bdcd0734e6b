"""GEOM (Axelrod & Gómez-Bombarelli 2022, doi:10.1038/s41597-022-01288-4), many conformers each.

`*_crude.msgpack` is a stream of maps from SMILES to the data of a molecule; bond orders are those
of the SMILES, for atoms that are near each other. The `.pickle` files of `rdkit_folder` hold one
molecule each, with RDKit's bonds. Both are read from their archives, `.tar.gz`, too.

All conformers of a molecule go into one record, in the order of the file; those whose bonds or
stereochemistry are not the first's (some reacted) are omitted. Labels are those of the ensemble;
records do not hold energies and weights of single conformers.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError, require_name

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned, attempt
from ..parsing.chemistry import (
    agreeing_conformers,
    check_radicals,
    merge_conformers,
    remove_hydrogens,
)
from ..parsing.files import has_suffix, import_optional, members, open_bytes, source_name
from ..parsing.kinds import HEAD
from ..parsing.labels import conversions, scale, with_units
from ..parsing.perception import bonds_of_smiles, connect
from ..parsing.pickles import load_dict
from ..parsing.reader import malformed_as_error

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
SAMPLE = 20  # molecules that decide which labels there are
PICKLES = (".pickle", ".pkl")
ARCHIVE = ".tar"  # ends the names of archives of many files, see files.source_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ensemble:
    """The conformers of one molecule."""

    smiles: str
    atoms: np.ndarray  # (num_conformers, num_atoms, 4): atomic number and position in A


class Reader(BaseReader):
    suffixes = (".msgpack", *PICKLES)

    def recognises(self, path: Path) -> bool:
        """Return whether the suffix fits, or that of the first file in an archive of many."""
        if not source_name(path).endswith(ARCHIVE):
            return super().recognises(path)
        with contextlib.closing(members(path)) as inside:
            return next(inside, ("",))[0].lower().endswith(PICKLES)

    def is_pickle(self, name: str) -> bool:
        return name.lower().endswith((*PICKLES, ARCHIVE))

    def pickled(self, path: Path) -> bytes:
        if not source_name(path).endswith(ARCHIVE):
            return super().pickled(path)
        inside = members(path)
        return next((file.read(HEAD) for name, file in inside if name.endswith(PICKLES)), b"")

    def survey(self, path: Path) -> tuple[Facts, None]:
        labels, _ = self._labels(path)
        if self.options.label_columns and has_suffix(path, (".msgpack",)):
            names = {key for _, known in itertools.islice(_entries(path), SAMPLE) for key in known}
            for label in labels:
                require_name(path, "label", label.name, names)
        notes = (NOTE, *conversions(labels, UNITS))
        taken = tuple(("label", label.name) for label in labels)
        return Facts(labels, notes=notes, taken=taken), None

    def scan(self, path: Path) -> Iterator[Scanned]:
        if source_name(path).endswith(ARCHIVE):
            yield from _archived(path)
            return
        if self.is_pickle(source_name(path)):
            with open_bytes(path) as file:
                yield 1, source_name(path).rpartition(".")[0], file.read(), ()
            return
        labels, factors = self._labels(path)
        for number, (smiles, known) in enumerate(_entries(path), start=1):
            ensemble, y = attempt(_ensemble, smiles, known, labels)
            yield number, smiles, ensemble, scale(y, factors)

    def build(self, raw: RawMolecule) -> Parsed:
        notes: tuple[str, ...] = ()
        if isinstance(raw.payload, Ensemble):
            y = raw.y
            mol, dropped = _from_positions(raw.payload)
        else:
            known = load_dict(raw.payload)
            labels, factors = self._labels(Path(raw.source))
            y = scale(_values(known, labels), factors)
            mol, dropped = _from_mols(known)
            if self.options.label_columns:
                notes = tuple(f"no label {x.name}" for x in labels if x.name not in known)
        if not self.options.keep_radicals:
            check_radicals(mol)
        if not self.options.keep_hydrogens:
            mol, _ = remove_hydrogens(mol)
        return Parsed(mol, y, dropped=dropped, notes=notes)

    def _labels(self, path: Path) -> tuple[tuple[Label, ...], tuple[float, ...]]:
        """Return the labels, and the factors to their units."""
        chosen = self.options.chosen_labels(UNITS)
        return with_units(path, tuple(map(Label, UNITS)) if chosen is None else chosen, UNITS)


def _archived(path: Path) -> Iterator[Scanned]:
    """Yield the pickles of an archive; others are counted."""
    others = 0
    for number, (name, stream) in enumerate(members(path), start=1):
        if name.lower().endswith(PICKLES):
            yield number, Path(name).stem, stream.read(), ()
        else:
            others += 1
    if others:
        log.info(f"{path}: {others} files in it are no pickles, and not read")


def _ensemble(
    smiles: str, known: Any, labels: tuple[Label, ...]
) -> tuple[Ensemble, tuple[float, ...]]:
    with malformed_as_error():
        atoms = np.array([conformer["xyz"] for conformer in known["conformers"]], np.float64)
    if atoms.ndim != 3 or atoms.shape[0] == 0 or atoms.shape[2] != 4:
        raise MoleculeError("no conformers with rows of atomic number and position")
    return Ensemble(smiles, atoms), _values(known, labels)


def _from_positions(ensemble: Ensemble) -> tuple[Chem.Mol, tuple[tuple[int, str], ...]]:
    numbers = ensemble.atoms[0, :, 0].astype(np.int64)
    positions = ensemble.atoms[:, :, 1:]
    bonds = connect(numbers, positions[0])
    mol, _ = bonds_of_smiles(numbers, bonds, ensemble.smiles)
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
    """Yield SMILES and data of each molecule; memory holds one of the stream."""
    msgpack = import_optional("msgpack")
    with open_bytes(path) as file:
        stream = msgpack.Unpacker(file, max_buffer_size=0, strict_map_key=False)
        try:
            while (count := _map_header(stream, msgpack)) is not None:
                for _ in range(count):
                    yield str(stream.unpack()), stream.unpack()
        except msgpack.OutOfData as error:
            raise MsdeError(f"{path} is cut off") from error
        except (msgpack.UnpackException, TypeError, ValueError) as error:
            raise MsdeError(f"{path} cannot be read as MessagePack: {error}") from error


def _map_header(stream: Any, msgpack: Any) -> int | None:
    try:
        return stream.read_map_header()
    except msgpack.OutOfData:
        return None


def _values(known: dict[str, Any], labels: tuple[Label, ...]) -> tuple[float, ...]:
    found = (known.get(label.name) for label in labels)
    return tuple(float(v) if isinstance(v, (int, float)) else math.nan for v in found)
