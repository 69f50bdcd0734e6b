"""Units of labels: which words in brackets behind a name are one, and factors between them.

Energies, lengths and what else `msde.chem.units` knows are converted, and molar concentrations. Of
other units, as `ug/mL`, it is known that they are units, so that none is taken for another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from msde.chem import units

_IN_BRACKETS = re.compile(r"(?<=.)[\[(]([^\[\]()]+)[\])]")  # behind a name
# Concentrations, and the powers of ten of mol/L that they are.
_MOLAR = {
    prefix + unit: power
    for prefix, power in {"": 0, "m": -3, "u": -6, "n": -9, "p": -12}.items()
    for unit in ("M", "mol/L", "mol/l")
}
_OTHERS = set(
    "kg g mg ug ng pg kDa Da amu L dL mL uL nL l dl ml ul nl mmol umol nmol pmol fmol fM m cm mm "
    "um ms us ns sec seconds min minute minutes h hr hour hours day days C °C degC °F degF Pa kPa "
    "MPa GPa bar mbar atm mmHg Torr V mV mN cP ppb IU deg degree degrees rad "
    "a.u. au atom particle molecule".split()
)
_LOGARITHMS = {"log", "log10", "ln", "-log", "-log10"}
# Alone other letters are phases, states and atoms, as (g), (S1) and (C2).
_LETTER = re.compile(r"[A-Za-z]\d?")
_LETTERS = {"A", "A2", "A3", "C", "D", "J", "K", "M", "V", "e", "h", "m", "m2", "m3", "s"}
_RAISED = re.compile(r"(.+?)\^?[+-]?\d")  # as cm2 or s-1
_POWER_OF_TEN = re.compile(r"10\^?[+-]\d+|1[eE][+-]\d+")  # as in 10^-6 cm/s
# Names of values that a factor does not convert: pIC50, logS, neglogIC50, cLogP, neg_pKi.
_LOGARITHM = re.compile(r"(?<![A-Za-z])(?:p(?=[A-Z])|(?i:(?:neg|minus|[acmpswx])?log)|ln(?![a-z]))")


def units_in(names: Iterable[str]) -> dict[str, str]:
    """Return the units that names state in brackets, as `gap [eV]`, by name."""
    found = {}
    for name in names:
        stated = map(str.strip, _IN_BRACKETS.findall(name))
        unit = next(filter(_is_unit, stated), None)
        if unit is not None:
            found[name] = unit
    return found


def factor(known: str, wanted: str) -> float | None:
    """Return what a value in `known` is multiplied by to be in `wanted`; None: there is no such."""
    here, there = _plain(known), _plain(wanted)
    if here in _MOLAR and there in _MOLAR:
        return 10.0 ** (_MOLAR[here] - _MOLAR[there])
    if here == there:
        return 1.0
    # Without regard to case nM would be a nanometre.
    return None if here in _MOLAR or there in _MOLAR else units.factor(here, there)


def is_logarithm(name: str) -> bool:
    """Return whether values are logarithms, by their name: a factor does not convert them."""
    return _LOGARITHM.search(name) is not None


def _plain(unit: str) -> str:
    """Return a unit with u for micro, and superscripts as digits."""
    plain = unicodedata.normalize("NFKC", unit).replace("\N{GREEK SMALL LETTER MU}", "u")
    return re.sub(r"[{}]", "", plain.replace("\N{MINUS SIGN}", "-"))


def _is_unit(text: str) -> bool:
    plain = _plain(text)
    if _LETTER.fullmatch(plain):
        return plain in _LETTERS
    words = re.split(r"[\s*·/]+", plain.removeprefix("1/"))
    is_unit = all(map(_is_word_of_unit, words)) and not {*words} <= _LOGARITHMS
    return is_unit or units.parse(plain) is not None


def _is_word_of_unit(word: str) -> bool:
    if word in _LOGARITHMS or _POWER_OF_TEN.fullmatch(word):
        return True
    raised = _RAISED.fullmatch(word)
    is_known = {word, raised[1] if raised else word} & (_OTHERS | _MOLAR.keys())
    return bool(is_known) or (word != "1" and units.parse(word) is not None)
