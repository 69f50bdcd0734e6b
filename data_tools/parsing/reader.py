"""The base class of readers: checks and steps that are the same for every format."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from msde.chem.parsing import axis_notes, forget_isotopes, stereo_note
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..options import SPECIAL
from .files import has_suffix, open_bytes, source_name, unreadable_as_error
from .kinds import HEAD, is_pickle, kind_of
from .types import Facts, Options, Parsed, RawMolecule, Scanned


class BaseReader(abc.ABC):
    """A file format: how its files are recognised, scanned and parsed.

    Formats define the first group of methods; callers use `recognises` and the second group.
    """

    keep_hydrogens: ClassVar[bool] = False  # the default of the format
    suffixes: ClassVar[tuple[str, ...]] = ()  # in lower case, without .gz
    follows: ClassVar[tuple[str, ...]] = ()  # which of the options SPECIAL

    def __init__(self, options: Options) -> None:
        """Keep the options; the default for hydrogens becomes the format's.

        Raises:
            MsdeError: the format cannot follow one of the options.
        """
        name = type(self).__module__.rpartition(".")[2]
        options.refuse([o for o in SPECIAL if o not in self.follows], f"--format {name}")
        keep = options.hydrogens(self.keep_hydrogens)
        self.options = dataclasses.replace(options, keep_hydrogens=keep)
        self.survey = functools.cache(self.survey)  # type: ignore[method-assign]

    def recognises(self, path: Path) -> bool:
        """Return whether a file looks like this format, for `--format auto`; by its suffix."""
        return has_suffix(path, self.suffixes)

    def is_pickle(self, name: str) -> bool:
        """Return whether a file of this name holds pickles, without opening it."""
        return False

    def pickled(self, path: Path) -> bytes:
        """Return the first bytes of the first pickle of a file."""
        with open_bytes(path) as file:
            return file.read(HEAD)

    def survey(self, path: Path) -> tuple[Facts, Any]:
        """Return the facts of one file, and what else `scan` asks of it; found only once."""
        return Facts(), None

    def count(self, path: Path) -> int | None:
        """Return how many molecules `scan` yields, where that is known before they are read."""
        return None

    def companions(self, path: Path) -> list[Path]:
        """Return the files beside a file that are read with it, as a table of labels."""
        return []

    @abc.abstractmethod
    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield line, name, payload and labels of each molecule, as fast as possible."""

    @abc.abstractmethod
    def build(self, raw: RawMolecule) -> Parsed:
        """Turn one molecule into an RDKit Mol, in a worker process.

        Raises:
            MoleculeError: it cannot be read; the message is the reason in `rejects.jsonl`.
        """

    def facts(self, paths: Sequence[Path]) -> Facts:
        """Return the facts of files that are converted together.

        Raises:
            MsdeError: one cannot be read or holds pickles that the user does not trust, or they
                differ in labels or in the unit of forces.
        """
        self.check_trusted(paths)
        every = []
        for path in paths:
            with unreadable_as_error(path):
                every.append(self.survey(path)[0])
        for path, found in zip(paths[1:], every[1:], strict=True):
            _check_same(paths[0], every[0], path, found)
        return dataclasses.replace(
            every[0],
            notes=tuple(dict.fromkeys(note for found in every for note in found.notes)),
            taken=tuple(dict.fromkeys(pair for found in every for pair in found.taken)),
            left_out=tuple({name: (name, why) for f in every for name, why in f.left_out}.values()),
        )

    def read(self, path: Path) -> Iterator[RawMolecule]:
        """Yield the molecules of a file, not parsed yet.

        Raises:
            MsdeError: the file cannot be read, or holds pickles that the user does not trust.
        """
        self.check_trusted([path])
        source = source_name(path)
        with unreadable_as_error(path):
            for scanned in self.scan(path):
                yield RawMolecule(source, *scanned)

    def parse(self, raw: RawMolecule) -> Parsed:
        """Parse one molecule; isotopes and stereo that records do not hold become notes.

        Raises:
            MoleculeError: it cannot be read.
        """
        if not self.options.trust_pickle and self.is_pickle(raw.source):
            raise _untrusted(raw.source)
        if isinstance(raw.payload, MoleculeError):
            raise raw.payload
        parsed = self.build(raw)
        stereo = [note] if (note := stereo_note(parsed.mol)) else []
        notes = (*forget_isotopes(parsed.mol), *stereo, *axis_notes(parsed.mol))
        return dataclasses.replace(parsed, notes=parsed.notes + notes) if notes else parsed

    def check_trusted(self, paths: Sequence[Path]) -> None:
        """Refuse pickles unless the user trusts them: loading one can run any code.

        Raises:
            MsdeError: one of the files is a pickle, or should be one, and the options do not trust
                pickles.
        """
        if self.options.trust_pickle:
            return
        for path in paths:
            if self.is_pickle(source_name(path)):
                with unreadable_as_error(path):
                    head = self.pickled(path)
                if not is_pickle(head):
                    raise MsdeError(f"{path} holds no pickle: what it holds is {kind_of(head)}")
                raise _untrusted(path)


@contextlib.contextmanager
def malformed_as_error() -> Iterator[None]:
    """Turn the errors of missing fields and of fields of another type into a MoleculeError."""
    try:
        yield
    except (MoleculeError, MsdeError, MemoryError):
        raise
    except KeyError as error:
        raise MoleculeError(f"cannot be parsed: there is no {error}") from error
    except Exception as error:  # data of any kind can fail in any way
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MoleculeError(f"cannot be parsed: {reason[:200]}") from error


def _untrusted(path: Path | str) -> MsdeError:
    return MsdeError(
        f"{path} holds Python pickles, which can run any code when they are loaded; "
        "if you trust where it comes from, give --trust-pickle"
    )


def _check_same(path: Path, facts: Facts, other: Path, found: Facts) -> None:
    if found.labels != facts.labels:
        here, there = (
            ", ".join(label.name + f" [{label.unit}]" * bool(label.unit) for label in labels)[:200]
            for labels in (facts.labels, found.labels)
        )
        raise MsdeError(
            f"{path} has labels {here or 'none'}, but {other} has {there or 'none'}; "
            "choose with --label-columns those that all have, as NAME=UNIT where units differ"
        )
    if found.forces_unit != facts.forces_unit:
        here, there = (
            "no forces" if unit is None else f"forces in {unit or 'an unknown unit'}"
            for unit in (facts.forces_unit, found.forces_unit)
        )
        raise MsdeError(f"{path} has {here}, but {other} has {there}")
