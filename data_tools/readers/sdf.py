"""SD files: mol blocks with 3D coordinates, separated by lines of four dollar signs.

Numbers among the properties (`> <NAME>`) are labels: those named in `options.label_columns`, or
all that hold numbers in every one of the first 1,000 records that has them. Stereochemistry comes
from the coordinates.

Rejected are, besides records that RDKit cannot parse,

- radicals, unless `options.keep_radicals`: the bonds of most SD files with geometry were found
  from positions by a program, and then an unpaired electron marks a missing bond. `M  RAD` lines
  are no evidence, for such programs write them, too;
- a geometry that lacks some of the hydrogens that the bonds imply (one without any, or without
  those of carbon, is taken for a molecule that is to lose them).

With `options.group_conformers` neighbouring records with the same title, atoms and bonds are
conformers of one molecule; other stereoisomers are omitted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem

from msde.chem.vocabulary import MoleculeError

from ..parsing import BaseReader, Facts, Label, Parsed, RawMolecule, Scanned
from ..parsing.chemistry import is_drawing, merge_conformers
from ..parsing.files import open_bytes
from ..parsing.labels import (
    NOT_CHOSEN,
    choose_labels,
    conversions,
    is_number,
    labels_from,
    scale,
    why_no_property,
    with_units,
)
from ..parsing.sd_files import (
    Block,
    atoms_from_block,
    count_atoms,
    mol_from_block,
    properties,
    records,
)
from ..parsing.types import attempt
from ..parsing.units import units_in

SAMPLE = 1000  # records that decide which properties are labels
CONTINUED = re.compile(r"-\r?\nM  V30 ")  # joins a line of V3000 and the next
GUESSED = "text that is not UTF-8 was read as Windows-1252"
DRAWING = (
    "no 3D conformer but a drawing; give SMILES, of which RDKit makes conformers, or convert with "
    "--conformers 0, topology alone"
)


@dataclass(frozen=True)
class Record:
    """The text of one molecule: a record, or several that are its conformers."""

    blocks: tuple[Block, ...]
    labels: tuple[Label, ...]
    factors: tuple[float, ...]  # see labels.with_units


class Reader(BaseReader):
    suffixes = (".sdf", ".sd", ".mol")
    follows = ("encoding", "group_conformers")

    def survey(self, path: Path) -> tuple[Facts, tuple[tuple[Label, ...], tuple[float, ...]]]:
        texts: dict[str, str] = {}  # the first value of each property that is no number, or ""
        with open_bytes(path) as file:
            for block in itertools.islice(records(file, path, self.options.encoding), SAMPLE):
                for name, (value, *_) in properties(block.text).items():
                    texts[name] = texts.get(name) or (value if not is_number(value) else "")

        def is_label(name: str) -> bool:
            return not texts[name] and not why_no_property(name)

        labels = choose_labels(path, self.options, texts, is_label, "property")
        units = units_in(texts)
        labels, factors = with_units(path, labels, units)
        taken = (("name", "title"), *(("label", label.name) for label in labels))
        others = texts.keys() - {label.name for label in labels}
        left_out = tuple(
            (name, f"text, as {text[:40]!r}" if text else why_no_property(name) or NOT_CHOSEN)
            for name, text in texts.items()
            if name in others
        )
        notes = conversions(labels, units)
        return Facts(labels, notes=notes, taken=taken, left_out=left_out), (labels, factors)

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each molecule, with labels that were chosen: so fine-tuning finds text in them.

        Others are left to `build`: to read them takes longer than to find the records.
        """
        labels, factors = self.survey(path)[1]
        are_read = bool(self.options.label_columns)
        with open_bytes(path) as file:
            for group in _groups(
                records(file, path, self.options.encoding), self.options.group_conformers
            ):
                record = Record(tuple(group), labels, factors)
                made = attempt(_with_labels, record) if are_read else (record, ())
                yield group[0].line, group[0].title, *made

    def build(self, raw: RawMolecule) -> Parsed:
        record = raw.payload
        keep = self.options.keep_hydrogens, self.options.keep_radicals
        y: tuple[float, ...] = ()
        notes = (GUESSED,) if any(block.is_guessed for block in record.blocks) else ()
        if record.labels:
            texts, repeated = _label_texts(record.blocks[0], record.labels)
            y = scale(labels_from(texts, record.labels), record.factors)
            notes += tuple(f"property {name}, of which the first is kept" for name in repeated)
        if not self.options.perceive_bonds:
            return Parsed(atoms_from_block(record.blocks[0].text), y, notes=notes)
        if len(record.blocks) == 1:
            mol = mol_from_block(record.blocks[0].text, *keep)
            if self.options.conformers and is_drawing(mol):
                raise MoleculeError(DRAWING)
            if self.options.keep_hydrogens and is_drawing(mol):
                mol = Chem.AddHs(mol)
            return Parsed(mol, y, notes=notes)
        mols, lines, failed = [], [], []
        for block in record.blocks:
            try:
                mols.append(mol_from_block(block.text, *keep))
                lines.append(block.line)
            except MoleculeError as error:
                failed.append((block.line, str(error)))
        if not mols:
            raise MoleculeError(failed[0][1])
        mol, dropped = merge_conformers(mols, lines)
        dropped += tuple((line, f"conformer: {reason}") for line, reason in failed)
        if record.labels and any(
            _label_texts(block, record.labels)[0] != texts for block in record.blocks[1:]
        ):
            notes += ("labels of its conformers differ: those of the first are kept",)
        return Parsed(mol, y, dropped=tuple(sorted(dropped)), notes=notes)


def _with_labels(record: Record) -> tuple[Record, tuple[float, ...]]:
    texts, _ = _label_texts(record.blocks[0], record.labels)
    return record, scale(labels_from(texts, record.labels), record.factors)


def _label_texts(block: Block, labels: tuple[Label, ...]) -> tuple[list[str], list[str]]:
    """Return the texts of labels, and what stands there several times."""
    found = properties(block.text)
    values = {label.name: found.get(label.name, [""]) for label in labels}
    repeated = [f"{n} stands there {len(v)} times" for n, v in values.items() if len(v) > 1]
    return [first for first, *_ in values.values()], repeated


def _groups(found: Iterator[Block], together: bool) -> Iterator[list[Block]]:
    """Group neighbours that are conformers of one molecule."""
    group: list[Block] = []
    key = None
    for block in found:
        this = _identity(block.text) if together else None
        if group and (this is None or this != key):
            yield group
            group = []
        group.append(block)
        key = this
    if group:
        yield group


def _identity(block: str) -> tuple | None:
    """Return title, atoms and bonds of a record, or None: it has no title or no such table."""
    lines = block.splitlines()
    if len(lines) < 4 or not lines[0].strip():
        return None
    atoms = count_atoms(block)
    if atoms is None:
        return None
    if "V3000" in lines[3]:
        return lines[0].strip(), *_tables_of_v3000(block)
    elements = tuple(line[31:34] for line in lines[4 : 4 + atoms])
    count = lines[3][3:6].strip()
    bonds = lines[4 + atoms :][: int(count) if count.isdigit() else 0]
    return lines[0].strip(), elements, tuple(line[:9] for line in bonds)


def _tables_of_v3000(block: str) -> tuple[tuple, tuple]:
    """Return the elements, and the type and atoms of each bond, of a block of the newer format."""
    columns = {"ATOM": slice(3, 4), "BOND": slice(3, 6)}
    found: dict[str, list[tuple[str, ...]]] = {table: [] for table in columns}
    table = ""
    for line in CONTINUED.sub("", block).splitlines():
        fields = line.split()
        if fields[:2] != ["M", "V30"] or len(fields) < 4:
            continue
        if fields[2] in ("BEGIN", "END"):
            table = fields[3] if fields[2] == "BEGIN" else ""
        elif table in found:
            found[table].append(tuple(fields[columns[table]]))
    return tuple(found["ATOM"]), tuple(found["BOND"])
