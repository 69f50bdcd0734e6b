"""QM9 as an SD file with its table: `gdb9.sdf` and `gdb9.sdf.csv` (doi:10.1038/sdata.2014.22).

The table has to lie beside the SD file; its rows are joined to the records by position and by
`mol_id`, which is the title. 3,054 molecules are not what their record says (their geometry
relaxed to something else); the list is `uncharacterized.txt`, which most people leave out: where
it lies beside the SD file they are refused, and else a note says that they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError

from ..parsing.tables import labels_from, layout, rows, with_units
from . import Facts, Label, Options, Parsed, RawMolecule, content, open_bytes, source_name
from .sdf import mol_from_block, records

KEEP_HYDROGENS = True
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


def recognises(path: Path) -> bool:
    """Tell by the name."""
    return source_name(path).lower() in ("gdb9.sdf", "gdb9.sdf.csv")


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Return the labels, and say what became of the uncharacterized molecules."""
    sdfs = [path for path in paths if _is_sdf(path)]
    if not sdfs:
        raise MsdeError(f"{paths[0]} is no SD file; give gdb9.sdf")
    labels = _labels(_table(sdfs[0]), options)
    excluded = _excluded(sdfs[0])
    if excluded is None:
        note = f"{EXCLUDED} is not beside the SD file: its {NUM_EXCLUDED} molecules are kept"
    else:
        note = f"{len(excluded)} molecules of {EXCLUDED} are rejected"
    return Facts(labels=labels, notes=(note,))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each record with its labels; a table itself yields nothing."""
    if not _is_sdf(path):
        return
    table = _table(path)
    labels = _labels(table, options)
    excluded = _excluded(path) or frozenset()
    body = rows(table, ",")
    header = next(body)[1]
    places = [header.index(label.name) for label in labels]
    source = source_name(path)
    with open_bytes(path) as file:
        for number, (line, block) in enumerate(records(file, path), start=1):
            title = block.partition("\n")[0].strip()
            payload: str | MoleculeError = block
            y: tuple[float, ...] = ()
            try:
                cells = next(body, (0, []))[1]
                _check_row(cells, title, len(header))
                y = labels_from([cells[place] for place in places], labels)
            except MoleculeError as error:
                payload = error
            if number in excluded:
                payload = MoleculeError(f"listed in {EXCLUDED}")
            yield RawMolecule(source, line, title, payload, y)


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse the mol block as for `sdf`."""
    keep_hydrogens = options.hydrogens(KEEP_HYDROGENS)
    return Parsed(mol_from_block(content(raw), keep_hydrogens, options.keep_radicals), raw.y)


def _check_row(cells: list[str], title: str, width: int) -> None:
    if len(cells) != width:
        raise MoleculeError("the table has no row for this record")
    if title and cells[0] != title:
        raise MoleculeError(f"wrong label alignment: the row of {title} is that of {cells[0]}")


def _labels(table: Path, options: Options) -> tuple[Label, ...]:
    return with_units(layout(table, _columns(options), ",").labels, UNITS)


def _columns(options: Options) -> Options:
    """Choose all known columns where the user chose none; the table has no SMILES."""
    chosen = options.label_columns if options.label_columns is not None else tuple(UNITS)
    return Options(smiles_column="mol_id", label_columns=chosen)


def _is_sdf(path: Path) -> bool:
    return source_name(path).lower().endswith(".sdf")


def _table(path: Path) -> Path:
    name = f"{source_name(path)}.csv"
    for table in (path.with_name(name), path.with_name(f"{name}.gz")):
        if table.is_file():
            return table
    raise MsdeError(
        f"{name} is not beside {path}; put it there, or use --format sdf to go without labels"
    )


def _excluded(path: Path) -> frozenset[int] | None:
    """Return the numbers of the molecules on the list, from 1; None: there is no list."""
    try:
        text = path.with_name(EXCLUDED).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Lines of the table begin with the molecule's number; others are prose.
    first = (line.split()[:1] for line in text.splitlines())
    return frozenset(int(words[0]) for words in first if words and words[0].isdigit())
