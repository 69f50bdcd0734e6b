"""A configuration from a preset, a JSON file and key=value overrides, and as a dictionary."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from msde.config.checks import check
from msde.config.presets import PRESETS
from msde.config.schema import RENAMED, Config, leaves
from msde.errors import ErrorList, MsdeError, did_you_mean


def make_config(
    preset: str = "base",
    file: Path | None = None,
    overrides: Iterable[str] = (),
    over: dict[str, Any] | None = None,
) -> Config:
    """Build a configuration: a preset, then a JSON file, then key=value overrides.

    Args:
        over: values that override the preset and are overridden by the file.

    Raises:
        MsdeError: an unknown preset or key (the nearest one is named), a value of a wrong type, or
            a broken rule of `checks`. All mistakes are listed at once.
    """
    if preset not in PRESETS:
        raise MsdeError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    config, errors = Config(), ErrorList()
    for layer in [*PRESETS[preset], over or {}]:
        apply_values(config, layer, f"preset {preset}")
    with errors.collect():
        if file is not None:
            apply_values(config, read_json(file), str(file))
    with errors.collect():
        apply_overrides(config, overrides)
    with errors.collect():
        check(config)
    errors.raise_if_any()
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], where: str = "stored configuration") -> Config:
    """Rebuild a configuration from what `to_dict` of this release or an earlier one returned."""
    config = Config()
    apply_values(config, values, where, stored=True)
    check(config)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MsdeError: the file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise MsdeError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MsdeError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise MsdeError(f"{path} holds {type(values).__name__}, expected a JSON object")
    return values


def nearest(key: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a misspelt key, or the list of known keys."""
    known = list(known)
    if hint := did_you_mean(key, known):
        return hint
    # The last part of a dotted key may be right.
    close = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def apply_overrides(config: Any, overrides: Iterable[str]) -> None:
    """Set values of a dataclass from texts key=value.

    Raises:
        MsdeError: an unknown key or a value of a wrong type; all mistakes are listed.
    """
    errors = ErrorList()
    for override in overrides:
        with errors.collect():
            key, equals, text = override.partition("=")
            if not equals:
                raise MsdeError(f"override {override!r} is not of the form key=value")
            _set(config, key, _parse(text), "command line")
    errors.raise_if_any()


def apply_values(
    config: Any, values: dict[str, Any], where: str, prefix: str = "", stored: bool = False
) -> None:
    """Set values of a tree of dataclasses from nested dictionaries; `where` is for messages.

    Args:
        stored: former names of keys are taken, too.

    Raises:
        MsdeError: an unknown key or a value of a wrong type; all mistakes are listed.
    """
    errors = ErrorList()
    for key, value in values.items():
        with errors.collect():
            if isinstance(value, dict):
                apply_values(config, value, where, f"{prefix}{key}.", stored)
            else:
                _set(config, f"{prefix}{key}", value, where, stored)
    errors.raise_if_any()


def _set(config: Any, key: str, value: Any, where: str, stored: bool = False) -> None:
    if stored:
        key = RENAMED.get(key, key)
    if key in RENAMED:
        raise MsdeError(f"{where}: {key} is called {RENAMED[key]} now; use that name")
    if key not in leaves(config):
        raise MsdeError(f"{where}: unknown key {key!r}{nearest(key, leaves(config))}")
    node: Any = config
    *path, name = key.split(".")
    for part in path:
        node = getattr(node, part)
    expected = typing.get_type_hints(type(node))[name]
    setattr(node, name, _convert(value, expected, f"{where}: {key}"))


def _parse(text: str) -> Any:
    """Return a value of the command line: read as JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(value: Any, expected: Any, where: str) -> Any:
    options = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        if value not in options:
            raise MsdeError(f"{where} is {value!r}, expected one of {', '.join(map(str, options))}")
        return value
    if type(None) in options:
        if value is None:
            return None
        (expected,) = (option for option in options if option is not type(None))
    if expected is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise MsdeError(f"{where} is {value}, expected a finite number")
        return float(value)
    if expected is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not expected:
        raise MsdeError(f"{where} is {value!r}, expected {expected.__name__}")
    return value
