"""QM9 as an SD file with its table: `gdb9.sdf` and `gdb9.sdf.csv` (doi:10.1038/sdata.2014.22).

The rows of the table are joined to the records by position and by `mol_id`, which is the title.
Of 3,054 molecules the geometry relaxed to another molecule than the record's. `uncharacterized.txt`
lists them, and most people exclude them: where it lies beside the SD file they are rejected, else
a note says that they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from msde.chem.vocabulary import MoleculeError

from ..parsing import Facts, Parsed, RawMolecule, Scanned
from ..parsing.files import has_suffix, source_name
from ..parsing.labels import conversions, scaled, with_units
from ..parsing.sd_files import Block, SDFWithTable, mol_from_block
from ..parsing.tables import layout

UNITS = {
    **dict.fromkeys(("A", "B", "C"), "GHz"),
    "mu": "D",
    "alpha": "a0^3",
    **dict.fromkeys(("homo", "lumo", "gap"), "Ha"),
    "r2": "a0^2",
    **dict.fromkeys(("zpve", "u0", "u298", "h298", "g298"), "Ha"),
    "cv": "cal/mol/K",
    **dict.fromkeys(("u0_atom", "u298_atom", "h298_atom", "g298_atom"), "kcal/mol"),
}
EXCLUDED = "uncharacterized.txt"
NUM_EXCLUDED = 3054


class Reader(SDFWithTable):
    keep_hydrogens = True

    def recognises(self, path: Path) -> bool:
        return source_name(path).lower() in ("gdb9.sdf", "gdb9.sdf.csv")

    def table_names(self, path: Path) -> Sequence[str]:
        return f"{source_name(path)}.csv", f"{source_name(path)}.csv.gz"

    def companions(self, path: Path) -> list[Path]:
        """Return the table of an SD file and the list of excluded molecules."""
        excluded = path.with_name(EXCLUDED)
        return [*super().companions(path), *([excluded] if excluded.is_file() else [])]

    def survey(self, path: Path) -> tuple[Facts, tuple[float, ...]]:
        """Return the facts, and the factors of labels."""
        chosen = self.options.label_columns
        options = replace(self.options, label_columns=tuple(UNITS) if chosen is None else chosen)
        found = layout(self.table(path), options, has_smiles=False)
        labels, factors = with_units(path, found.labels, UNITS)
        excluded = _excluded(path)
        if excluded is None:
            note = f"{EXCLUDED} is not beside the SD file: its {NUM_EXCLUDED} molecules are kept"
        else:
            note = f"{len(excluded)} molecules of {EXCLUDED} are rejected"
        taken = (("name", "title"), *(("label", label.name) for label in labels))
        notes = (note, *conversions(labels, UNITS))
        return Facts(labels, notes=notes, taken=taken, left_out=found.left_out), factors

    def name_of(self, block: Block, cells: list[str]) -> str:
        """Return the title of a record or, where it has none, `mol_id` of its row."""
        return super().name_of(block, cells) or (cells[0] if cells else "")

    def join(self, block: Block, cells: list[str]) -> str:
        """Return the record; its title, if it has one, must be its row's `mol_id`."""
        title = self.name_of(block, cells)
        if title and cells[0] != title:
            raise MoleculeError(f"wrong label alignment: the row of {title} is that of {cells[0]}")
        return block.text

    def scan(self, path: Path) -> Iterator[Scanned]:
        """Yield each record with its labels; uncharacterized ones are rejected."""
        excluded = _excluded(path) or frozenset()
        factors = self.survey(path)[1] if has_suffix(path, self.suffixes) else ()
        for line, name, *rest in scaled(super().scan(path), factors):
            if name in excluded:
                rest = [MoleculeError(f"listed in {EXCLUDED}"), ()]
            yield line, name, *rest

    def build(self, raw: RawMolecule) -> Parsed:
        return Parsed(
            mol_from_block(raw.payload, self.options.keep_hydrogens, self.options.keep_radicals),
            raw.y,
        )


def _excluded(path: Path) -> frozenset[str] | None:
    """Return the titles of the uncharacterized molecules; None: there is no list."""
    try:
        text = path.with_name(EXCLUDED).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Lines of the table begin with the molecule's number; others are prose.
    first = (line.split()[:1] for line in text.splitlines())
    return frozenset(f"gdb_{words[0]}" for words in first if words and words[0].isdigit())
