"""Trajectories in NumPy's .npz: MD17, rMD17, MD22 and files of sGDML.

Arrays are `z` (or nuclear_charges), `R` (coords), `E` (energies), `F` (forces) and optionally
`r_unit` and `e_unit`. Without these, units are those that the data sets share: A, kcal/mol and
kcal/mol/A. Each frame is a molecule. Bonds are perceived once, from the first frame in which that
works, and serve all others. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.chemistry import check_radicals
from ..parsing.labels import all_or_none
from ..parsing.perception import Bonds, System, connect, order_bonds, parse_system

NAMES = {
    "numbers": ("z", "nuclear_charges"),
    "positions": ("R", "coords"),
    "energies": ("E", "energies"),
    "forces": ("F", "forces"),
}
UNITS = (("e_unit", "kcal/mol"), ("r_unit", "Ang"))  # with their defaults
ATTEMPTS = 100  # frames from which to try to find the bonds
ANGSTROM = {"ang", "angstrom", "a", "å", "angstroms"}
BOHR = {"bohr": 0.529177210903, "a0": 0.529177210903, "au": 0.529177210903}  # in A


@dataclass(frozen=True)
class Trajectory:
    """The arrays of one file."""

    numbers: np.ndarray  # (num_atoms,)
    positions: np.ndarray  # (num_frames, num_atoms, 3) A
    energies: np.ndarray | None  # (num_frames,)
    forces: np.ndarray | None  # (num_frames, num_atoms, 3)
    energy_unit: str
    length_unit: str  # of the forces


class Reader(BaseReader):
    keep_hydrogens = True
    suffixes = (".npz",)

    def recognises(self, path: Path) -> bool:
        """Return whether the archive has arrays with the names of numbers and positions."""
        if not super().recognises(path) or not zipfile.is_zipfile(path):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                inside = {name.removesuffix(".npy") for name in archive.namelist()}
        except zipfile.BadZipFile:
            return False
        return all(inside & set(NAMES[kind]) for kind in ("numbers", "positions"))

    def file_facts(self, path: Path) -> Facts:
        return self._facts(path, _load(path))

    def scan(self, path: Path) -> Iterator[Scanned]:
        trajectory = _load(path)
        bonds = self._bonds(path, trajectory)
        is_labelled = bool(self._facts(path, trajectory).labels)
        for place, position in enumerate(trajectory.positions):
            forces = None if trajectory.forces is None else trajectory.forces[place]
            system = System(trajectory.numbers, position, forces, bonds=bonds)
            y = (float(trajectory.energies[place]),) if is_labelled else ()
            yield place + 1, "", system, y

    def build(self, raw: RawMolecule) -> Parsed:
        return parse_system(raw.payload, self.options, raw.y)

    def _facts(self, path: Path, trajectory: Trajectory) -> Facts:
        unit = trajectory.energy_unit
        labels = () if trajectory.energies is None else (Label("energy", unit),)
        forces_unit = None if trajectory.forces is None else f"{unit}/{trajectory.length_unit}"
        note = "bonds were perceived once per file and serve all of its frames"
        return Facts(all_or_none(path, labels, self.options), forces_unit, (note,))

    def _bonds(self, path: Path, trajectory: Trajectory) -> Bonds:
        """Return the bonds of the first frame in which they can be perceived."""
        reason: MoleculeError | None = None
        for position in trajectory.positions[:ATTEMPTS]:
            try:
                bonds = connect(trajectory.numbers, position)
                mol = order_bonds(trajectory.numbers, bonds)
                if not self.options.keep_radicals:
                    check_radicals(mol)
                return bonds
            except MoleculeError as error:
                reason = error
        raise MsdeError(f"{path}: none of the first {ATTEMPTS} frames gives bonds: {reason}")


def _load(path: Path) -> Trajectory:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {
                kind: next((archive[name] for name in names if name in archive), None)
                for kind, names in NAMES.items()
            }
            units = [str(_text(archive, name, default)) for name, default in UNITS]
    except (ValueError, zipfile.BadZipFile, KeyError) as error:
        raise MsdeError(f"{path} cannot be read: {error}") from error
    numbers, positions = arrays["numbers"], arrays["positions"]
    if numbers is None or positions is None:
        raise MsdeError(f"{path} lacks atomic numbers (z) or positions (R)")
    if positions.ndim != 3 or positions.shape[1:] != (numbers.size, 3):
        raise MsdeError(f"{path}: positions of shape {positions.shape} for {numbers.size} atoms")
    forces, energies = arrays["forces"], arrays["energies"]
    if forces is not None and forces.shape != positions.shape:
        raise MsdeError(f"{path}: forces of shape {forces.shape}, positions {positions.shape}")
    if energies is not None and energies.size != len(positions):
        raise MsdeError(f"{path}: {energies.size} energies for {len(positions)} frames")
    energy_unit, length_unit = units
    if length_unit.lower() not in ANGSTROM | BOHR.keys():
        raise MsdeError(f"{path}: lengths are in {length_unit!r}, expected Angstrom or bohr")
    scale = BOHR.get(length_unit.lower(), 1.0)
    energies = None if energies is None else energies.reshape(-1)
    length_unit = "A" if scale == 1 else "a0"
    return Trajectory(
        numbers.reshape(-1), positions * scale, energies, forces, energy_unit, length_unit
    )


def _text(archive: np.lib.npyio.NpzFile, name: str, default: str) -> str:
    if name not in archive:
        return default
    value = archive[name].item()
    return value.decode() if isinstance(value, bytes) else value
