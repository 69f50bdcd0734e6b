"""Trajectories in NumPy's .npz: MD17, rMD17, MD22, files of sGDML and their kind.

Arrays are `z` (or nuclear_charges), `R` (coords), energies and forces under the names of
`parsing.quantities` (`E`, `F`, energies, ...) and optionally `charge`, one or one for each frame,
`r_unit` and `e_unit`. Where a file states no units, that of the energy is the user's, or that which
the published data sets share: A, kcal/mol and kcal/mol/A. Other numbers for each frame can be
chosen as labels. Each frame is a molecule. Bonds are perceived once, from the first frame in which
that works, and serve all others. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from msde.chem.units import factor, parse
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import GEOMETRY
from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.chemistry import check_radicals
from ..parsing.graphs import is_zip
from ..parsing.labels import choose_labels, conversions, left_out, scale, units_of, with_units
from ..parsing.perception import Bonds, System, connect, order_bonds, parse_system
from ..parsing.quantities import TOLERANCE, Quantities, choose_quantities, is_energy

ENERGY = ("e", "energy", "energies")
NUMBERS = ("z", "nuclear_charges", "atomic_numbers", "numbers")  # in lower case
POSITIONS = ("r", "coords", "coordinates", "positions", "pos")
CHARGE = ("charge", "charges", "total_charge", "total_charges", "q")
UNITS = ("e_unit", "r_unit")
DEFAULT = "kcal/mol"
ATOMIC = ("au", "a.u.", "atomic")  # Hartree or Bohr
ATTEMPTS = 100  # frames from which to try to find the bonds


@dataclass(frozen=True)
class Trajectory:
    """The arrays of one file."""

    numbers: np.ndarray  # (num_atoms,)
    positions: np.ndarray  # (num_frames, num_atoms, 3) A
    scalars: dict[str, np.ndarray]  # (num_frames,) each
    forces: np.ndarray | None  # (num_frames, num_atoms, 3)
    charges: np.ndarray  # (num_frames,)
    facts: Facts
    factors: tuple[float, ...]


class Reader(BaseReader):
    keep_hydrogens = True
    follows = GEOMETRY
    suffixes = (".npz",)

    def recognises(self, path: Path) -> bool:
        """Return whether the archive has arrays with the names of numbers and positions."""
        if not super().recognises(path) or not is_zip(path):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                inside = {name.removesuffix(".npy").lower() for name in archive.namelist()}
        except (zipfile.BadZipFile, NotImplementedError):
            return False
        return bool(inside & {*NUMBERS}) and bool(inside & {*POSITIONS})

    def survey(self, path: Path) -> tuple[Facts, None]:
        return self._load(path).facts, None

    def count(self, path: Path) -> int:
        """Return the number of frames, of which the array's header tells."""
        with zipfile.ZipFile(path) as archive:
            files = {name.removesuffix(".npy").lower(): name for name in archive.namelist()}
            name = next(files[name] for name in files if name in POSITIONS)
            with archive.open(name) as file:
                is_first = np.lib.format.read_magic(file) == (1, 0)
                header = "read_array_header_1_0" if is_first else "read_array_header_2_0"
                return getattr(np.lib.format, header)(file)[0][0]

    def scan(self, path: Path) -> Iterator[Scanned]:
        trajectory = self._load(path)
        bonds = self._bonds(path, trajectory)
        columns = [trajectory.scalars[label.name] for label in trajectory.facts.labels]
        for place, position in enumerate(trajectory.positions):
            forces = None if trajectory.forces is None else trajectory.forces[place]
            charge = int(trajectory.charges[place])
            system = System(trajectory.numbers, position, forces, charge, bonds)
            y = tuple([float(column[place]) for column in columns])
            yield place + 1, "", system, scale(y, trajectory.factors)

    def build(self, raw: RawMolecule) -> Parsed:
        return parse_system(raw.payload, self.options, raw.y)

    def _bonds(self, path: Path, trajectory: Trajectory) -> Bonds:
        """Return the bonds of the first frame in which they can be perceived."""
        reason: MoleculeError | None = None
        for position, charge in zip(
            trajectory.positions[:ATTEMPTS], trajectory.charges[:ATTEMPTS], strict=True
        ):
            try:
                bonds = connect(trajectory.numbers, position)
                mol = order_bonds(trajectory.numbers, bonds, int(charge))
                if not self.options.keep_radicals:
                    check_radicals(mol)
                return bonds
            except MoleculeError as error:
                reason = error
        hint = "" if trajectory.charges.any() else "; give --charge if it is an ion"
        raise MsdeError(f"{path}: none of the first {ATTEMPTS} frames gives bonds: {reason}{hint}")

    def _load(self, path: Path) -> Trajectory:
        arrays, texts, left = _arrays(path)
        numbers, positions = _geometry(path, arrays)
        charges, charge_key = self._charges(path, arrays, len(positions))
        scalars = {
            name: array.reshape(-1)
            for name, array in arrays.items()
            if array.size == len(positions) and name.lower() not in CHARGE
        }
        vectors = {name: array for name, array in arrays.items() if array.shape == positions.shape}
        found = choose_quantities(path, self.options, scalars, list(vectors))
        forces = vectors[found.forces] if found.forces else None
        left |= {
            name: f"numbers of shape {array.shape}{', read if chosen' if name in scalars else ''}"
            for name, array in arrays.items()
            if name not in (found.forces, charge_key)
        }
        # An energy without other words has always been the label "energy".
        field = next((name for name in scalars if name.lower() in ENERGY), "energy")
        renamed = []
        if "energy" not in scalars and field in scalars:
            renamed = [f"{field} is the label energy"]
            left |= {"energy": left.pop(field)}
            scalars = {"energy" if name == field else name: a for name, a in scalars.items()}
            found = replace(found, energy="energy" if found.energy == field else found.energy)
        energy_unit, length = _units(path, texts)
        labels, factors, energy_unit, notes = self._labels(path, scalars, found, energy_unit)
        charge = (("charge", charge_key),) if charge_key else ()
        facts = Facts(
            labels,
            None if forces is None else f"{energy_unit}/{length}",
            ("bonds were perceived once per file and serve all of its frames", *renamed, *notes),
            found.taken(labels) + charge,
            tuple(left_out(left, units_of(labels))),
        )
        scaling = factor(length, "A")
        positions = positions if scaling == 1 else positions * scaling
        if forces is not None and found.sign < 0:
            forces = -forces
        return Trajectory(numbers, positions, scalars, forces, charges, facts, factors)

    def _labels(
        self, path: Path, scalars: Mapping[str, np.ndarray], found: Quantities, unit: str
    ) -> tuple[tuple[Label, ...], tuple[float, ...], str, list[str]]:
        """Return the labels, the factors to their units, the unit of energies, and notes."""
        energies = [name for name in scalars if is_energy(name)]
        kind = "number for each frame named"
        labels = choose_labels(path, self.options, scalars, is_energy, kind)
        notes = [*found.notes()]
        if not unit and (energies or found.forces):
            given = units_of(labels).get(found.energy or next(iter(energies), ""), "")
            unit, why = (given, "as --label-columns says") if given else (DEFAULT, "as in MD17")
            notes.append(f"the unit of energies is not stated: {unit} is taken, {why}")
        known = dict.fromkeys(energies, unit)
        labels, factors = with_units(path, labels, known)
        return labels, factors, unit, [*notes, *conversions(labels, known)]

    def _charges(
        self, path: Path, arrays: Mapping[str, np.ndarray], num_frames: int
    ) -> tuple[np.ndarray, str | None]:
        """Return the charge of each frame, and the array that they come from."""
        for name, array in arrays.items():
            if name.lower() in CHARGE and array.size in (1, num_frames):
                whole = np.round(array)
                if not (np.abs(array - whole) <= TOLERANCE).all():
                    raise MsdeError(f"{path}: {name} holds charges that are not whole numbers")
                return np.broadcast_to(whole.reshape(-1), num_frames).astype(np.int64), name
        return np.full(num_frames, self.options.charge or 0), None


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Return the arrays of numbers, the texts, and why others are not read, by name.

    Raises:
        MsdeError: the file is no archive of arrays, or damaged.
    """
    if not is_zip(path):
        with open(path, "rb") as file:
            is_npy = file.read(6) == b"\x93NUMPY"
        found = "a single NumPy array" if is_npy else "no .npz archive"
        raise MsdeError(f"{path} is {found}, expected an .npz with arrays z and R")
    arrays, texts, left = {}, {}, {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    array = archive[name]
                except ValueError as error:
                    if "pickle" not in str(error).lower():
                        raise
                    left[name] = "Python objects, which are pickles and never loaded"
                    continue
                if not isinstance(array, np.ndarray):
                    left[name] = "no array"
                elif array.dtype.kind in "biuf":
                    arrays[name] = array
                elif array.size == 1:
                    value = array.reshape(-1)[0]
                    texts[name] = (
                        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                    )
                    left |= {} if name in UNITS else {name: f"text, such as {texts[name][:30]!r}"}
                else:
                    left[name] = f"an array of type {array.dtype}"
    except Exception as error:  # a damaged archive fails in many ways
        reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        reason = "an array is damaged" if "pickle" in reason else reason
        raise MsdeError(f"{path} cannot be read: {reason}") from error
    return arrays, texts, left


def _geometry(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Take atomic numbers and positions out of the arrays.

    Raises:
        MsdeError: one is missing, or they do not fit together.
    """
    taken = []
    for wanted, text in ((NUMBERS, "atomic numbers (z)"), (POSITIONS, "positions (R)")):
        name = next((name for name in arrays if name.lower() in wanted), None)
        if name is None:
            raise MsdeError(
                f"{path} cannot be read: it lacks {text}, found {', '.join(arrays)[:300] or 'none'}"
            )
        taken.append(arrays.pop(name))
    numbers, positions = taken
    if positions.ndim != 3 or positions.shape[1:] != (numbers.size, 3):
        raise MsdeError(f"{path}: positions of shape {positions.shape} for {numbers.size} atoms")
    if not len(positions) or not (numbers == np.round(numbers)).all():
        raise MsdeError(f"{path} has no frames, or atomic numbers that are not whole numbers")
    return numbers.reshape(-1).astype(np.int64), positions


def _units(path: Path, texts: Mapping[str, str]) -> tuple[str, str]:
    """Return the units of energies, "" where the file does not say, and of lengths, A or a0.

    Raises:
        MsdeError: one is not known.
    """
    energy, length = (texts.get(name, "").strip() for name in UNITS)
    energy = "Ha" if energy.lower() in ATOMIC else energy
    if energy and parse(energy) is None:
        raise MsdeError(f"{path}: energies are in {energy!r}, which is not known")
    length = "a0" if length.lower() in ATOMIC else length or "A"
    if factor(length, "A") is None:
        raise MsdeError(f"{path}: lengths are in {length!r}, expected Angstrom or bohr")
    size = factor(length, "A")
    return energy, {1.0: "A", factor("a0", "A"): "a0"}.get(size, length)
