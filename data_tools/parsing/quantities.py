"""Which fields of a file hold the energy and the forces that belong to a geometry, by their names.

Names are compared without regard to case and to the words around: `REF_forces`, `dft_force` and
`Forces` are forces, `dft_total_gradient` is a gradient. The energy that goes with forces has the
same words around, as `REF_energy` with `REF_forces`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .types import Label, Options

ENERGY = {"energy", "energies", "etot", "toten"}
FORCES = {"forces", "force", "frc"}
GRADIENTS = {"gradient", "gradients", "grad", "grads"}
LETTERS = {"e": "energy", "f": "forces"}  # alone, or beside one of METHODS
METHODS = {"ref", "dft", "mace", "ase", "qm", "xtb", "orca"}
NEGATIVE = {"neg", "negative", "minus"}
# Words of names that hold something about energies and forces, not these.
OTHER = (
    "old std stdev var variance error errors uncertainty uncertainties committee mask weight "
    "weights max fmax rms norm constant constants unit units per"
).split()
CHARGE = ("charge", "total_charge")  # names of the charge, in lower case
NO_FORCES = "no forces: other molecules of the file have them"  # a note on a molecule
TOLERANCE = 1e-6  # by which a charge may miss a whole number
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class Quantities:
    """The names of the fields with forces and with the energy that goes with them, if any."""

    energy: str | None = None
    forces: str | None = None
    sign: int = 1  # -1: the field holds the gradient of the energy

    def notes(self) -> tuple[str, ...]:
        """Return what users of the data should know about them."""
        if self.sign > 0:
            return ()
        return (f"{self.forces} is a gradient of the energy: forces are its negative",)

    def lacking(self, forces: Any) -> tuple[str, ...]:
        """Return the note on a molecule whose forces, None, are missing in a file that has some."""
        return (NO_FORCES,) if self.forces and forces is None else ()

    def taken(self, labels: Iterable[Label]) -> tuple[tuple[str, str], ...]:
        """Return (role, field) of the labels and of the forces."""
        roles = []
        for label in labels:
            is_any = self.forces is None and is_energy(label.name)
            roles.append(("energy" if is_any or label.name == self.energy else "label", label.name))
        return (*roles, *([("forces", self.forces)] if self.forces else []))


def is_energy(name: str) -> bool:
    """Return whether a name is one of an energy."""
    return _quantity(name)[0] == "energy"


def is_forces(name: str) -> bool:
    """Return whether a name is one of forces, or of a gradient."""
    return _quantity(name)[0] in ("forces", "gradient")


def choose_quantities(
    path: object,
    options: Options,
    scalars: Collection[str],
    vectors: Sequence[str],
    forces: Sequence[str] | None = None,
) -> Quantities:
    """Return which fields are the forces and the energy that goes with them.

    Args:
        scalars: the fields with one number for each geometry.
        vectors: the fields with three numbers for each atom.
        forces: those that may be forces; None: by their names.

    Raises:
        MsdeError: there are several and the user chose none, or one that is not there.
    """
    forces = [name for name in vectors if is_forces(name)] if forces is None else forces
    chosen = _chosen(path, "forces", options.forces_key, vectors, forces)
    energies = [name for name in scalars if is_energy(name)]
    if options.energy_key is None and len(energies) > 1:
        if chosen is None:
            return Quantities()
        same = [name for name in energies if _quantity(name)[1] == _quantity(chosen)[1]]
        energies = same if len(same) == 1 else energies
    energy = _chosen(path, "energy", options.energy_key, scalars, energies)
    is_gradient = chosen is not None and _quantity(chosen)[0] == "gradient"
    return Quantities(energy, chosen, -1 if is_gradient else 1)


def charge_of(values: Mapping[str, Any], otherwise: int) -> int:
    """Return the charge of a molecule: the first of CHARGE that has a value, or `otherwise`.

    Raises:
        MoleculeError: it is no whole number.
    """
    value = next((v for k, v in values.items() if k.lower() in CHARGE and v is not None), otherwise)
    try:
        charge = float(value if isinstance(value, int | float | str) else np.reshape(value, ()))
        if abs(charge - round(charge)) <= TOLERANCE:
            return round(charge)
    except (TypeError, ValueError, OverflowError):
        pass
    raise MoleculeError(f"charge {str(value)[:20]!r}, expected a whole number")


def _chosen(
    path: object, kind: str, asked: str | None, names: Collection[str], candidates: Sequence[str]
) -> str | None:
    if asked is not None:
        if asked not in names:
            found = ", ".join(names)[:300] or "none"
            raise MsdeError(f"{path} has no {kind} {asked!r} (--{kind}-key), found {found}")
        return asked
    if len(candidates) > 1:
        raise MsdeError(
            f"{path} has several candidates for {kind}, {', '.join(candidates)[:300]}; "
            f"choose one with --{kind}-key"
        )
    return next(iter(candidates), None)


def _quantity(name: str) -> tuple[str, tuple[str, ...]]:
    """Return what a name stands for, "" if neither, and the words around."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or any(word in OTHER for word in words):
        return "", ()
    for kind, known in (("gradient", GRADIENTS), ("forces", FORCES), ("energy", ENERGY)):
        rest = tuple(word for word in words if word not in known and word not in NEGATIVE)
        if any(word in known for word in words):
            return ("forces" if NEGATIVE & {*words} else kind) if kind == "gradient" else kind, rest
    letters = [word for word in words if word not in METHODS]
    if len(letters) == 1 and letters[0] in LETTERS:
        return LETTERS[letters[0]], tuple(word for word in words if word in METHODS)
    return "", ()
