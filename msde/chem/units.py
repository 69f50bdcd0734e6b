"""Units of labels, energies, forces and lengths: what they are, and factors between them.

A unit is a text such as `kcal/mol`, `Ha/a0`, `a0^3` or `cal/mol K`: all that follows a slash up to
the next one is below the line. Constants are those of CODATA 2018.
"""

from __future__ import annotations

import math
import re

# The size in eV, A, e, K and s, and the powers of energy, length, charge, temperature and time.
Unit = tuple[float, tuple[int, ...]]

_BASES = ("energy", "length", "charge", "temperature", "time")
_JOULE = 1 / 1.602176634e-19
_BOHR = 0.529177210903
_HARTREE = 27.211386245988
_DEBYE = 0.20819433442462576  # e A
_HC = 1.239841984332e-4  # eV cm: a wavenumber of 1/cm is this energy
_PLANCK = 4.135667696923859e-15  # eV s: a frequency is an energy, as of rotational constants
_NAMES: dict[str, dict[str, float]] = {
    "energy": {
        "eV": 1.0,
        "meV": 1e-3,
        "MeV": 1e6,
        "Ha Hartree Hartrees Eh E_h": _HARTREE,
        "mHa mHartree mEh": _HARTREE * 1e-3,
        "Ry Rydberg": _HARTREE / 2,
        "J Joule": _JOULE,
        "kJ": _JOULE * 1e3,
        "cal": _JOULE * 4.184,
        "kcal": _JOULE * 4184,
        "cm-1 invcm": _HC,
        "Hz": _PLANCK,
        "MHz": _PLANCK * 1e6,
        "GHz": _PLANCK * 1e9,
        "THz": _PLANCK * 1e12,
    },
    "length": {
        "A Ang Angstrom Angstroms Å \u212b": 1.0,
        "a0 a_0 Bohr Bohrs": _BOHR,
        "pm": 0.01,
        "nm": 10.0,
    },
    "charge": {"e": 1.0},
    "temperature": {"K Kelvin": 1.0},
    "time": {"s": 1.0, "fs": 1e-15, "ps": 1e-12},
    "": {"mol": 6.02214076e23, "1": 1.0, "%": 0.01, "ppm": 1e-6},
}


def _table() -> dict[str, Unit]:
    """Return the units by name, and in lower case where that is one unit, as of meV and MeV not."""
    found: dict[str, Unit] = {
        name: (size, tuple(int(base == kind) for base in _BASES))
        for kind, units in _NAMES.items()
        for names, size in units.items()
        for name in names.split()
    }
    found |= dict.fromkeys(("D", "Debye"), (_DEBYE, (0, 1, 1, 0, 0)))
    lower: dict[str, set[Unit]] = {}
    for name, unit in found.items():
        lower.setdefault(name.lower(), set()).add(unit)
    clear = {_folded(name): unit for name, unit in found.items() if len(lower[name.lower()]) == 1}
    return clear | found


def _folded(name: str) -> str:
    """Return a name in lower case, but for a first letter that tells milli from mega."""
    is_prefix = name[:1] in ("m", "M") and name.lower() != "mol"
    return name[0] + name[1:].lower() if is_prefix else name.lower()


_TABLE = _table()
_INVERSE_CM = re.compile(r"1/cm\b|\bcm\s*(\^|\*\*)?\s*\(?-1\)?", re.IGNORECASE)
_POWER = re.compile(r"(.*?)\^?\(?([+-]?[1-9])\)?")  # as of a0^3 and mol-1


def factor(known: str, wanted: str) -> float | None:
    """Return what a value in `known` is multiplied by to be in `wanted`; None: there is no such."""
    if known == wanted:
        return 1.0
    here, there = parse(known), parse(wanted)
    if here is None or there is None or here[1] != there[1]:
        return None
    return 1.0 if math.isclose(here[0], there[0], rel_tol=1e-12) else here[0] / there[0]


def parse(text: str) -> Unit | None:
    """Return the size of a unit and the powers of its dimensions; None: it is not known."""
    size, powers = 1.0, [0] * len(_BASES)
    parts = _INVERSE_CM.sub("invcm", text.strip()).replace("**", "^").split("/")
    for place, part in enumerate(parts):
        for word in re.split(r"[\s*·]+", part.strip(" ()")):
            found = _word(word)
            if found is None:
                return None
            unit, power = found
            power = power if place == 0 else -power
            size *= unit[0] ** power
            powers = [old + power * new for old, new in zip(powers, unit[1], strict=True)]
    return size, tuple(powers)


def _word(word: str) -> tuple[Unit, int] | None:
    """Return the unit that a word names, and its power."""
    raised = _POWER.fullmatch(word)
    for name, power in ((word, "1"), raised.groups() if raised else ("", "1")):
        unit = _TABLE.get(name) or _TABLE.get(_folded(name))
        if unit is not None:
            return unit, int(power)
    return None
