"""Code that several readers share; readers import the base class and the types from here."""

from .reader import BaseReader, malformed_as_error
from .types import Facts, Label, Options, Parsed, RawMolecule, Scanned, attempt

__all__ = [
    "BaseReader",
    "Facts",
    "Label",
    "Options",
    "Parsed",
    "RawMolecule",
    "Scanned",
    "attempt",
    "malformed_as_error",
]
