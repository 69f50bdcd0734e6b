"""Labels of molecules: numbers from text, and which of a file's values the user wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from .types import Label, Options

MISSING = {"", "nan", "na", "n/a", "none", "null", "-"}


def number(text: str, decimal_comma: bool = False) -> float:
    """Return a label, NaN where it is missing; ValueError if it is not a finite number."""
    if text.strip().lower() in MISSING:
        return math.nan
    if decimal_comma and "." in text and "," in text:
        raise ValueError(f"{text} has both a point and a comma")
    value = float(text.replace(",", ".") if decimal_comma else text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
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


def with_units(labels: tuple[Label, ...], units: Mapping[str, str]) -> tuple[Label, ...]:
    """Give labels without a unit theirs, by name."""
    return tuple(
        label if label.unit else replace(label, unit=units.get(label.name, "")) for label in labels
    )


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


def all_or_none(path: Path, labels: tuple[Label, ...], options: Options) -> tuple[Label, ...]:
    """Return all labels of a file, or none where the user wants none; units may be the user's.

    Raises:
        MsdeError: the user chose some, in another order, or others.
    """
    chosen = options.chosen_labels()
    if chosen is None:
        return labels
    names = [label.name for label in labels]
    if chosen and [label.name for label in chosen] != names:
        raise MsdeError(
            f"{path} has labels {', '.join(names) or 'none'}, and only all or none can be chosen"
        )
    return with_units(chosen, {label.name: label.unit for label in labels})


def require_name(path: Path, kind: str, wanted: str, names: Collection[str]) -> None:
    """Raise an MsdeError if a column, property or value is not among the names of a file."""
    if wanted not in names:
        found = ", ".join(names)[:300] or "none"
        raise MsdeError(f"{path} has no {kind} {wanted!r}, found {found}")
