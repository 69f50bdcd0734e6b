"""Labels of molecules: numbers from text, and which of a file's values the user wants."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from msde.chem.parsing import MISSING
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError, require_name

from .types import Label, Options, Scanned
from .units import factor, is_logarithm

MINUS = "\N{MINUS SIGN}"  # as word processors write it
EXACT = 2**53  # above it not every whole number is a number of 64 bits
NOT_CHOSEN = "not among the labels that were chosen"
NAME_COLUMNS = ("name", "title", "mol id", "molecule id", "id", "compound id", "cid", "iupac")
NUMBERING = {"idx", "index", "num", "no", "row", "unnamed: 0", *NAME_COLUMNS}
LAST_WORDS = {"id", "cid", "idx", "index"}  # of names of what numbers something


def number(text: str, decimal_comma: bool = False) -> float:
    """Return a label, NaN where it is missing; ValueError if it is not a finite number."""
    if text.strip().lower() in MISSING:
        return math.nan
    if decimal_comma and "." in text and "," in text:
        raise ValueError(f"{text} has both a point and a comma")
    plain = text.replace(",", ".") if decimal_comma else text
    value = float(plain if plain.isascii() else plain.replace(MINUS, "-"))
    if not math.isfinite(value) or "_" in text:
        raise ValueError(f"{text} is no finite number")
    if abs(value) >= EXACT and text.strip().lstrip("+-").isdecimal() and int(text) != int(value):
        raise ValueError(f"{text} has more digits than a label holds")
    return value


def is_number(text: str, decimal_comma: bool = False) -> bool:
    """Return whether a text is a number, or missing."""
    try:
        number(text, decimal_comma)
    except ValueError:
        return False
    return True


def labels_from(
    texts: list[str], labels: tuple[Label, ...], decimal_comma: bool = False
) -> tuple[float, ...]:
    """Return the labels of one molecule.

    Raises:
        MoleculeError: one is neither a number nor missing.
    """
    try:
        return tuple([number(text, decimal_comma) for text in texts])
    except ValueError:
        bad = next(i for i, text in enumerate(texts) if not is_number(text, decimal_comma))
        reason = f"label {labels[bad].name} is not a number: {texts[bad][:40]!r}"
        raise MoleculeError(reason) from None


def with_units(
    path: Path, labels: tuple[Label, ...], units: Mapping[str, str]
) -> tuple[tuple[Label, ...], tuple[float, ...]]:
    """Give labels the units that are known of a file; a unit that the user gave is converted to.

    Args:
        units: known units by name; where there is none, the user's is taken as the unit.

    Returns:
        The labels, and the factors that their values need, () where all are one.

    Raises:
        MsdeError: the known unit cannot be converted to the user's.
    """
    found, factors = [], []
    for label in labels:
        known = units.get(label.name, "")
        found.append(label if label.unit else replace(label, unit=known))
        factors.append(_factor(path, label, known) if known and label.unit else 1.0)
    return tuple(found), tuple(factors) if any(size != 1 for size in factors) else ()


def _factor(path: Path, label: Label, known: str) -> float:
    size = factor(known, label.unit)
    is_fixed = size != 1 and is_logarithm(label.name)
    if size is None or is_fixed:
        why = ", a logarithm by its name" if is_fixed else ""
        raise MsdeError(
            f"{path} has {label.name} in {known}{why}, which cannot be converted to "
            f"{label.unit!r}; choose it without a unit, or change values and name in the file"
        )
    return size


def conversions(labels: tuple[Label, ...], units: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note for each label that is converted to a unit of the user."""
    pairs = ((label, units.get(label.name, "")) for label in labels)
    return tuple(
        f"{label.name} is converted from {known} to {label.unit}"
        for label, known in pairs
        if known and factor(known, label.unit) != 1
    )


def scale(y: tuple[float, ...], factors: tuple[float, ...]) -> tuple[float, ...]:
    """Return labels multiplied by the factors of `with_units`."""
    if not factors or not y:
        return y
    return tuple(value * size for value, size in zip(y, factors, strict=True))


def scaled(found: Iterator[Scanned], factors: tuple[float, ...]) -> Iterator[Scanned]:
    """Return scanned molecules whose labels are multiplied by the factors of `with_units`."""
    if not factors:
        return found
    return ((line, name, payload, scale(y, factors)) for line, name, payload, y in found)


def plain_name(name: str) -> str:
    """Return a name in lower case, its words divided by blanks."""
    return re.sub(r"[\s_-]+", " ", name.lower()).strip()


def why_no_label(name: str) -> str:
    """Return why something is no label by its name alone, or ""."""
    plain = plain_name(name)
    is_numbering = plain in NUMBERING or plain.rpartition(" ")[2] in LAST_WORDS
    return "numbers or names the molecules" if is_numbering else ""


def why_no_property(name: str) -> str:
    """Return the same for a property, of which an index may be refractive and NO a molecule."""
    is_id = plain_name(name).rpartition(" ")[2] in ("id", "cid")
    return why_no_label(name) if is_id else ""


def why_no_labels(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the names of values of molecules, each with the reason why it is no label, or "".

    A label is a number wherever it is there and not missing, and is a number at least once.
    """
    found: dict[str, str] = {}
    for values in samples:
        for name, value in values.items():
            if not found.get(name):
                found[name] = _why_no_number(value)
    for name, reason in found.items():
        found[name] = why_no_property(name) or reason
        if not found[name] and all(is_missing(values.get(name)) for values in samples):
            found[name] = "missing everywhere"
    return found


def left_out(
    reasons: Mapping[str, str], taken: Collection[str | None]
) -> Iterator[tuple[str, str]]:
    """Yield what is not taken of the values of `why_no_labels`, with the reasons."""
    for name, reason in reasons.items():
        if name not in taken:
            yield name, reason or NOT_CHOSEN


def value_of(value: Any) -> float:
    """Return a label of any type, NaN where it is missing.

    Raises:
        ValueError: it is not a finite number.
    """
    if value is None or isinstance(value, (str, bytes)):
        return number("" if value is None else str(value))
    if math.isnan(value):
        return float(value)
    return number(str(value) if type(value) is int else repr(float(value)))


def is_missing(value: Any) -> bool:
    """Return whether a value of any type is None, NaN, or a text for a missing number."""
    try:
        return math.isnan(value_of(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _why_no_number(value: Any) -> str:
    shape = getattr(value, "shape", ())
    if shape:
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__}"
    try:
        if not isinstance(value, (bool, np.bool_)):
            value_of(value)
            return ""
    except (TypeError, ValueError, OverflowError):
        pass
    kind = "text" if isinstance(value, (str, bytes)) else "not a number"
    return f"{kind}, such as {str(value)[:30]!r}"


def choose_labels(
    path: Path,
    options: Options,
    names: Collection[str],
    is_label: Callable[[str], bool],
    kind: str = "value",
) -> tuple[Label, ...]:
    """Return the labels that the user chose or, by default, all that `is_label` accepts.

    Raises:
        MsdeError: the user chose one that is not among `names`.
    """
    chosen = options.chosen_labels(names)
    if chosen is None:
        return tuple(Label(name) for name in names if is_label(name))
    for label in chosen:
        require_name(path, kind, label.name, names)
    return chosen


def all_or_none(
    path: Path, labels: tuple[Label, ...], options: Options
) -> tuple[tuple[Label, ...], tuple[float, ...]]:
    """Return all labels of a file, or none where the user wants none, as `with_units` does.

    Raises:
        MsdeError: the user chose some, in another order, or others, or in another kind of unit.
    """
    names = [label.name for label in labels]
    chosen = options.chosen_labels(names)
    if chosen is None:
        return labels, ()
    if chosen and [label.name for label in chosen] != names:
        raise MsdeError(
            f"{path} has labels {', '.join(names) or 'none'}, and only all or none can be chosen"
        )
    return with_units(path, chosen, units_of(labels))


def units_of(labels: tuple[Label, ...]) -> dict[str, str]:
    """Return the units of labels, by name."""
    return {label.name: label.unit for label in labels}
