"""XYZ files, plain, extended and as published for MD17 and QM9: each frame is a molecule.

The first line is the number of atoms, the second a comment; an atom is its symbol (or number, or a
label such as C12) and three coordinates in A. D and T are hydrogens. What comments may hold is
listed in `parsing.frames`: numbers with a name become labels, the charge is used, and text alone is
the name of the molecule, unless `options.name_column` says which value is. In an extended
file `Properties` names the columns, and frames with `pbc`, or with `Lattice` unless `pbc` is false,
are rejected as periodic.

Energy and forces are known by their names (`parsing.quantities`). Plain frames may have forces in
columns 5 to 7, if an energy is in the comment. XYZ files state no units; give one as
`energy=kcal/mol` in `options.label_columns`. Forces are then in it per A.

Bonds are perceived.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from msde.chem.vocabulary import MoleculeError
from msde.errors import require_name

from ..options import GEOMETRY
from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.files import open_text
from ..parsing.frames import (
    AFTER_POSITIONS,
    GDB_VALUES,
    IN_COMMENT,
    MAX_NAME,
    POSITIONS,
    SPECIES,
    Comment,
    columns_of,
    frames,
    read_atoms,
    read_comment,
    value_in,
)
from ..parsing.labels import (
    choose_labels,
    conversions,
    labels_from,
    left_out,
    scale,
    units_of,
    why_no_labels,
    with_units,
)
from ..parsing.perception import System, parse_system
from ..parsing.quantities import (
    CHARGE,
    Quantities,
    charge_of,
    choose_quantities,
    is_energy,
    is_forces,
)
from .qm9 import UNITS as QM9_UNITS

SAMPLE = 100  # frames that decide which keys are labels
SETTINGS = ("spin", "multiplicity", "pbc", "lattice", "frame", "step", "id")
KIND = "value in its comments named"
PLAIN_FORCES = f"forces are read from {AFTER_POSITIONS}, which have no name"


@dataclass(frozen=True)
class Fields:
    """What is read of the frames of a file."""

    labels: tuple[Label, ...]
    factors: tuple[float, ...]
    quantities: Quantities
    known: frozenset[str]  # keys of the sample's comments


@dataclass(frozen=True)
class Frame:
    """The text of one frame."""

    comment: str
    atoms: tuple[str, ...]
    fields: Fields


class Reader(BaseReader):
    keep_hydrogens = True
    follows = (*GEOMETRY, "name_column", "encoding")
    suffixes = (".xyz", ".extxyz")

    def recognises(self, path: Path) -> bool:
        """Return whether the suffix fits and the first line is a number."""
        if not super().recognises(path):
            return False
        with open_text(path, self.options.encoding) as file:
            return file.readline().strip().isdecimal()

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each frame; its line is where it begins."""
        fields = self.survey(path)[1]
        for line, text, atoms in frames(path, self.options.encoding):
            yield line, self._name(text), Frame(text, atoms, fields), ()

    def _name(self, text: str) -> str:
        """Return the name of a frame with this comment."""
        if self.options.name_column is not None:
            return read_comment(text).values.get(self.options.name_column, "")
        # Other comments have no name, and to read one may take as long as to read its atoms.
        may_have_name = text.startswith("gdb") or ("=" not in text and len(text) <= MAX_NAME)
        return read_comment(text).name if may_have_name else ""

    def build(self, raw: RawMolecule) -> Parsed:
        frame = raw.payload
        fields, quantities = frame.fields, frame.fields.quantities
        comment = read_comment(frame.comment)
        if _is_periodic(comment.values):
            raise MoleculeError("periodic")
        y = labels_from([comment.values.get(x.name, "") for x in fields.labels], fields.labels)
        atoms = read_atoms(comment, frame.atoms, raw.line + 2, quantities.forces)
        forces = None if atoms.forces is None else atoms.forces * quantities.sign
        charge = charge_of(comment.values, self.options.charge or 0)
        system = System(atoms.numbers, atoms.position, forces, charge, isotopes=atoms.isotopes)
        notes = [*quantities.lacking(forces)]
        if unknown := sorted(comment.values.keys() - fields.known):
            notes.append(f"not read, as the first {SAMPLE} frames lack it: {', '.join(unknown)}")
        return parse_system(system, self.options, scale(y, fields.factors), tuple(notes))

    def survey(self, path: Path) -> tuple[Facts, Fields]:
        """Return what the first frames show of a file."""
        sample = [
            (read_comment(text), len(atoms[0].split()) if atoms else 0)
            for _, text, atoms in itertools.islice(frames(path, self.options.encoding), SAMPLE)
        ]
        comments = [comment for comment, _ in sample]
        reasons = why_no_labels([comment.values for comment in comments])
        if self.options.name_column is not None:
            require_name(path, KIND, self.options.name_column, reasons)
        for name in reasons:
            if name.lower() in CHARGE + SETTINGS:
                reasons[name] = "a setting, not a property"

        def is_label(name: str) -> bool:
            return not reasons[name]

        labels = choose_labels(path, self.options, reasons, is_label, KIND)
        is_gdb = any(comment.is_gdb for comment in comments)
        known = {name: QM9_UNITS[name] for name in GDB_VALUES} if is_gdb else {}
        labels, factors = with_units(path, labels, known)
        numbers = [name for name, reason in reasons.items() if not reason]
        vectors, others = _columns(sample)
        forces = [name for name, may_be_forces in vectors.items() if may_be_forces]
        found = choose_quantities(path, self.options, numbers, list(vectors), forces)
        unit = units_of(labels).get(found.energy or "", "")
        facts = Facts(
            labels,
            None if found.forces is None else f"{unit}/A" if unit else "",
            (
                *found.notes(),
                *conversions(labels, known),
                *([PLAIN_FORCES] if found.forces == AFTER_POSITIONS else []),
            ),
            (*found.taken(labels), *self._others_taken(comments)),
            tuple(self._left_out(comments, reasons, labels, vectors, found)) + tuple(others),
        )
        return facts, Fields(labels, factors, found, frozenset(reasons))

    def _others_taken(self, comments: list[Comment]) -> Iterator[tuple[str, str]]:
        keys = dict.fromkeys(key for comment in comments for key in comment.values)
        yield from (("charge", key) for key in keys if key.lower() in CHARGE)
        if self.options.name_column is not None:
            yield "name", self.options.name_column
        elif any(comment.name for comment in comments):
            yield "name", "gdb" if any(comment.is_gdb for comment in comments) else "comment"

    def _left_out(
        self,
        comments: list[Comment],
        reasons: Mapping[str, str],
        labels: tuple[Label, ...],
        vectors: Mapping[str, bool],
        found: Quantities,
    ) -> Iterator[tuple[str, str]]:
        charges = {name for name in reasons if name.lower() in CHARGE}
        yield from left_out(reasons, units_of(labels).keys() | charges | {self.options.name_column})
        for name, may_be_forces in vectors.items():
            if name == found.forces:
                continue
            if name == AFTER_POSITIONS:
                yield name, "no energy in the comments says that they are forces"
            else:
                yield name, "not the forces chosen" if may_be_forces else "three for each atom"
        is_name = self.options.name_column is None
        unread = (c.text for c in comments if c.text and not (is_name and c.name))
        if text := next(unread, ""):
            number = text.lstrip("+-").isdigit()
            reason = "a whole number, which may count frames" if number else "text"
            yield "comment", f"{reason}, such as {text[:30]!r}"
        if any(comment.is_gdb for comment in comments):
            yield "column 5", "Mulliken charges"
            yield "lines after the atoms", "frequencies, SMILES and InChI"


def _columns(sample: list[tuple[Comment, int]]) -> tuple[dict[str, bool], list[tuple[str, str]]]:
    """Return the columns with three numbers, and whether they may be forces; and the others."""
    vectors: dict[str, bool] = {}
    others: dict[str, str] = {}
    for comment, num_cells in sample:
        columns = columns_of(comment.properties, num_cells)
        for name, cells in columns.items():
            if name == AFTER_POSITIONS:
                has_energy = any(map(is_energy, comment.values))
                vectors[name] = vectors.get(name, False) or has_energy
            elif cells.stop - cells.start == 3 and name.lower() not in POSITIONS:
                vectors[name] = is_forces(name)
            elif name.lower() not in SPECIES + POSITIONS:
                others[name] = "a column for each atom"
        if comment.forces:
            vectors[IN_COMMENT] = True
        if columns and max(c.stop for c in columns.values()) < num_cells and not comment.is_gdb:
            others["further columns"] = "they have no name"
    return vectors, list(others.items())


def _is_periodic(values: Mapping[str, str]) -> bool:
    """Return whether a frame is periodic; one with a lattice is, unless `pbc` is false."""
    pbc = value_in(values, "pbc")
    if pbc is None:
        return value_in(values, "lattice") is not None
    return any(word.strip(",").lower() in {"t", "true", "1"} for word in pbc.split())
