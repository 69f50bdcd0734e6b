"""Readers of molecular file formats: one module a format, and the table FORMATS.

To add a format, MOL2 for example, write one file and one line:

- `readers/mol2.py` with a class `Reader(BaseReader)` that sets `suffixes` (or overrides
  `recognises`), `keep_hydrogens` if its molecules keep their hydrogens by default, `follows` if it
  can follow options that only some can, and defines

      scan(path)        yields line, name, payload and labels of each molecule, unparsed
      build(raw)        turns one, a RawMolecule, into a Parsed molecule, in a worker process
      survey(path)      labels, units and notes of the file, and what else `scan` asks of it
      is_pickle(name)   where its files can be pickles, which need --trust-pickle

- its name in FORMATS of `data_tools.options`, before formats that would recognise its files, too.

`BaseReader` checks that files which are converted together agree and that pickles are trusted.
Code that several formats need is in `data_tools.parsing`: `files` (opening), `labels`, `tables`
(CSV), `sd_files` (mol blocks), `databases` (LMDB), `pickles`, `chemistry` (hydrogens, radicals,
conformers), `perception` (bonds from positions).
"""

from __future__ import annotations

import importlib

from ..options import FORMATS
from ..parsing import BaseReader, Facts, Label, Options, Parsed, RawMolecule

__all__ = ["FORMATS", "Facts", "Label", "Options", "Parsed", "RawMolecule", "get_reader"]

DEFAULTS = Options()


def get_reader(name: str, options: Options = DEFAULTS) -> BaseReader:
    """Return the reader of a format; only the modules that it needs are imported."""
    return importlib.import_module(f".{name}", __name__).Reader(options)
