"""Trajectories in NumPy's .npz: MD17, rMD17, MD22 and what sGDML writes.

Arrays are `z` (or nuclear_charges), `R` (coords), `E` (energies), `F` (forces) and, where the file
has them, `r_unit` and `e_unit`. Where it has not, units are those that these data sets share: A,
kcal/mol and kcal/mol/A. Each frame is a molecule. The bonds are found once, from the first frame
in which that works, and serve all others. No pickled object is ever loaded.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.chemistry import check_radicals
from ..parsing.perception import parsed_geometry, perceive
from . import Facts, Label, Options, Parsed, RawMolecule, content, source_name

KEEP_HYDROGENS = True
NAMES = {
    "numbers": ("z", "nuclear_charges"),
    "positions": ("R", "coords"),
    "energies": ("E", "energies"),
    "forces": ("F", "forces"),
}
UNITS = (("e_unit", "kcal/mol"), ("r_unit", "Ang"))  # and what they are if the file is silent
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


@dataclass(frozen=True)
class Frame:
    """One geometry, and the molecule of its trajectory in RDKit's binary form."""

    topology: bytes
    position: np.ndarray  # (num_atoms, 3) A
    forces: np.ndarray | None


def recognises(path: Path) -> bool:
    """Tell by the names of the arrays in the archive."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return all(inside & set(NAMES[kind]) for kind in ("numbers", "positions"))


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Return the energy and the units; all files have to have the same."""
    found = {_facts(_load(path), options) for path in paths}
    if len(found) > 1:
        raise MsdeError("the files differ in units, or some lack energies or forces")
    return found.pop()


def _facts(trajectory: Trajectory, options: Options) -> Facts:
    unit = trajectory.energy_unit
    labels = () if trajectory.energies is None else (Label("energy", unit),)
    chosen = options.chosen_labels()
    if chosen is not None:
        if [label.name for label in chosen] not in ([], [label.name for label in labels]):
            raise MsdeError("the only label of md17 is energy")
        labels = tuple(Label("energy", label.unit or unit) for label in chosen)
    forces_unit = None if trajectory.forces is None else f"{unit}/{trajectory.length_unit}"
    note = "bonds were perceived once per file and serve all of its frames"
    return Facts(labels, forces_unit, (note,))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each frame."""
    trajectory = _load(path)
    topology = _topology(path, trajectory, options).ToBinary()
    source = source_name(path)
    labelled = bool(_facts(trajectory, options).labels)
    for frame, position in enumerate(trajectory.positions):
        forces = None if trajectory.forces is None else trajectory.forces[frame]
        payload: Frame | MoleculeError = Frame(topology, position, forces)
        y = (float(trajectory.energies[frame]),) if labelled else ()
        yield RawMolecule(source, frame + 1, "", payload, y)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Put the geometry of a frame on its trajectory's molecule."""
    frame = content(raw)
    forces = None if frame.forces is None else frame.forces[None]
    mol = Chem.Mol(_molecule(frame.topology))
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    return parsed_geometry(mol, frame.position[None], options, keep_hydrogens, raw.y, forces)


@functools.lru_cache(maxsize=16)
def _molecule(topology: bytes) -> Chem.Mol:
    return Chem.Mol(topology)


def _topology(path: Path, trajectory: Trajectory, options: Options) -> Chem.Mol:
    reason: MoleculeError | None = None
    for position in trajectory.positions[:ATTEMPTS]:
        try:
            mol = perceive(trajectory.numbers, position)
            if not options.keep_radicals:
                check_radicals(mol)
            return mol
        except MoleculeError as error:
            reason = error
    raise MsdeError(f"{path}: in none of its first frames can bonds be found: {reason}")


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
