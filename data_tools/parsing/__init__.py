"""Code that several readers share; readers import the base class and the types from here."""

from .reader import BaseReader
from .types import Facts, Label, Options, Parsed, RawMolecule, Scanned, attempt

__all__ = ["BaseReader", "Facts", "Label", "Options", "Parsed", "RawMolecule", "Scanned", "attempt"]
