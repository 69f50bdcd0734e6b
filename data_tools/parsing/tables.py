"""Tables of molecules: how they are written, and which columns hold SMILES, names and labels.

The delimiter is that of a line `sep=`, or of comma, semicolon, tab and bar the one that cuts the
first rows into the same number of cells; the encoding is found as in `files.encoding_of`. Numbers
may have a decimal comma, one column like the other; where the delimiter is a comma, too, only if no
number of the table has a decimal point.

The first row is a header if one of its cells names SMILES (or is the column that was asked for), or
if it holds no SMILES and the rows below do. Without a header columns are known by their numbers,
from 1. SMILES stand in the column named so, or in the one column whose cells are SMILES; names in
the first of NAME_COLUMNS. Labels are those columns in which all of the first 1,000 rows hold
numbers or nothing; columns that number the rows (NUMBERING) are not among them.
"""

from __future__ import annotations

import csv
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem, rdBase

from msde.chem.parsing import is_missing
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError, require_name

from .files import UTF_8, encoding_of, open_text, source_name
from .labels import (
    NAME_COLUMNS,
    choose_labels,
    conversions,
    is_number,
    labels_from,
    plain_name,
    scale,
    why_no_label,
    with_units,
)
from .types import Facts, Label, Options, Scanned, attempt
from .units import units_in

SUFFIXES = {"csv": ",", "tsv": "\t", "tab": "\t"}  # the delimiters that names promise
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
NO_HEADER = "the table has no header that names it"
SAMPLE = 1000  # rows that decide which columns are labels
SMILES_SAMPLE = 20  # rows that decide which column holds SMILES
CUT_SAMPLE = 50  # rows that decide which delimiter it is
SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # the first line of a table of Excel
# A line before the header is a comment, unless it is the header itself, as `#smiles,gap`.
COMMENT = re.compile(r"#(?!(.*[,;\t|])?\s*\w*smiles\s*([,;\t|]|$))|\s*$", re.IGNORECASE)
THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}(,\d{3})+\s*")  # or three decimals
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
DECIMAL_POINT = re.compile(r"[+-]?[\d,]*\.\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    encoding: str
    delimiter: str
    start: int = 0  # rows before the first: a line `sep=`, or comments
    comments: int = 0


@dataclass(frozen=True)
class Layout:
    """The columns of a table, by number."""

    dialect: Dialect
    header: tuple[str, ...] | None  # the first row, if it is one
    smiles: int
    name: int | None
    labels: tuple[Label, ...]
    places: tuple[int, ...]  # the columns of the labels
    factors: tuple[float, ...]  # of the labels, see labels.with_units
    decimal_comma: bool
    left_out: tuple[tuple[str, str], ...]  # columns that are not read, and why
    notes: tuple[str, ...]

    def title(self, place: int) -> str:
        """Return the name of a column, or its number, from 1."""
        return self.header[place] if self.header else str(place + 1)

    @property
    def facts(self) -> Facts:
        """The facts of the table's file."""
        taken = [("SMILES", self.title(self.smiles))]
        if self.name is not None:
            taken.append(("name", self.title(self.name)))
        taken += [("label", label.name) for label in self.labels]
        if self.dialect.encoding != UTF_8:
            taken.append(("encoding", self.dialect.encoding))
        taken.append(("delimiter", DELIMITERS.get(self.dialect.delimiter, self.dialect.delimiter)))
        if self.decimal_comma:
            taken.append(("decimal sign", "comma"))
        return Facts(self.labels, None, self.notes, tuple(taken), self.left_out)


def is_table(path: Path) -> bool:
    """Return whether a file is named like a table."""
    return source_name(path).lower().rpartition(".")[2] in SUFFIXES


def dialect_of(path: Path, options: Options) -> Dialect:
    """Find encoding and delimiter of a table, those that the user does not name.

    Raises:
        MsdeError: the encoding cannot be found.
    """
    encoding = options.encoding or encoding_of(path)
    with open_text(path, encoding) as file:
        lines = list(itertools.islice(file, CUT_SAMPLE))
    named = SEPARATOR_LINE.fullmatch(lines[0].strip("\r\n")) if lines else None
    before = lines[:1] if named else list(itertools.takewhile(COMMENT.match, lines))
    rest = len(before), sum(line.startswith("#") for line in before)
    usual = SUFFIXES.get(source_name(path).lower().rpartition(".")[2], ",")
    if options.delimiter:
        return Dialect(encoding, options.delimiter, *rest)
    if named:
        return Dialect(encoding, named[1], *rest)
    # In case of a tie the delimiter that the name of the file promises.
    order = [usual, *(each for each in DELIMITERS if each != usual)]
    body = lines[len(before) :]
    return Dialect(encoding, max(order, key=functools.partial(_evenness, body)), *rest)


def _evenness(lines: Sequence[str], delimiter: str) -> tuple[float, bool]:
    """Return the share of rows with as many cells as the first, and whether that names SMILES.

    Where the first row is one cell the share is 0.
    """
    try:
        cut = [cells for cells in csv.reader(lines, delimiter=delimiter) if cells]
    except csv.Error:
        return 0, False
    if not cut or len(cut[0]) == 1:
        return 0, False
    share = sum(len(cells) == len(cut[0]) for cells in cut) / len(cut)
    return share, "smiles" in [cell.strip().lower() for cell in cut[0]]


def rows(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells, without blanks around them, of each row with any cells.

    Raises:
        MsdeError: a quotation mark is not closed, or has text behind it.
    """
    with open_text(path, dialect.encoding) as file:
        reader = csv.reader(file, delimiter=dialect.delimiter, strict=True)
        line = 1
        try:
            for number, cells in enumerate(reader):
                if cells and number >= dialect.start:
                    yield line, [cell.strip() for cell in cells]
                line = reader.line_num + 1
        except csv.Error as error:
            raise MsdeError(
                f"{path}: the row that begins in line {line} cannot be read: {error}; "
                "mend its quotation marks"
            ) from error


def header_of(path: Path, options: Options) -> list[str]:
    """Return the cells of the first row."""
    return next(rows(path, dialect_of(path, options)), (0, []))[1]


def layout(path: Path, options: Options, has_smiles: bool = True) -> Layout:
    """Find the columns of a table.

    Args:
        has_smiles: False: the molecules are elsewhere, and the first column names them.

    Raises:
        MsdeError: one that was asked for is not there, or no column holds SMILES.
    """
    dialect = dialect_of(path, options)
    sample = [cells for _, cells in itertools.islice(rows(path, dialect), SAMPLE + 1)]
    if has_smiles:
        header, smiles = _find_smiles(path, sample, options)
    else:
        header, smiles = tuple(sample[0]) if sample else (), 0
    body = sample[1:] if header else sample
    titles = header or tuple(str(p + 1) for p in range(max(map(len, sample), default=0)))
    names: dict[str, int] = {}
    for place, title in enumerate(titles):
        names.setdefault(title, place)
    name = None if header else (1 if len(titles) > 1 and smiles != 1 else None)
    if options.name_column is not None:
        require_name(path, "column", options.name_column, names)
        name = names[options.name_column]
    elif header and has_smiles:
        plain = [plain_name(title) for title in titles]
        name = next((plain.index(known) for known in NAME_COLUMNS if known in plain), None)

    columns = _Columns(body, dialect.delimiter)
    taken = {smiles, name}
    why_not = {
        title: why_no_label(title)
        or ("" if title else "it has no name")
        or (columns.why_no_label(place) if header else NO_HEADER)
        for title, place in names.items()
        if place not in taken
    }
    labels = choose_labels(
        path, options, names, lambda title: not why_not.get(title, "not a label"), "column"
    )
    places = tuple(names[label.name] for label in labels)
    units = units_in(titles)
    labels, factors = with_units(path, labels, units)
    empty = [titles[place] for place in places if columns.is_empty(place)]
    notes = (
        *conversions(labels, units),
        *(f"{title} is missing in all of the first {len(body)} rows" for title in empty if body),
        *([] if body else ["the table has a header and no rows"]),
    )
    left_out = [("comments", f"{dialect.comments} before the table")] if dialect.comments else []
    for place, title in enumerate(titles):
        if place in {*taken, *places}:
            continue
        is_first = names[title] == place
        reason = why_not.get(title) if is_first else "another column has this name"
        shown = title if title and is_first else f"{title} (column {place + 1})".strip()
        left_out.append((shown, reason or "not chosen"))
    decimal_comma = any(columns.has_decimal_comma(place) for place in places)
    found = (name, labels, places, factors, decimal_comma, tuple(left_out), notes)
    return Layout(dialect, header, smiles, *found)


class _Columns:
    """The first rows of a table, by column."""

    def __init__(self, body: list[list[str]], delimiter: str) -> None:
        self._body, self._delimiter = body, delimiter

    def _cells(self, place: int) -> list[tuple[int, str]]:
        return [(n, cells[place]) for n, cells in enumerate(self._body, 1) if place < len(cells)]

    def has_decimal_comma(self, place: int) -> bool:
        """Return whether the numbers of a column have decimal commas.

        1,234 may be a thousand, but not in a table with semicolons, which exist for decimal commas.
        In one with commas 1,2 is taken for two numbers if other numbers have decimal points.
        """
        found = [cell for _, cell in self._cells(place) if DECIMAL_COMMA.fullmatch(cell)]
        is_clear = self._delimiter == ";" or not all(map(THOUSANDS.fullmatch, found))
        return bool(found) and is_clear and not (self._delimiter == "," and self._has_points)

    @functools.cached_property
    def _has_points(self) -> bool:
        return any(DECIMAL_POINT.fullmatch(cell) for cells in self._body for cell in cells)

    def is_empty(self, place: int) -> bool:
        """Return whether no cell of a column holds a value."""
        return all(is_missing(cell) for _, cell in self._cells(place))

    def why_no_label(self, place: int) -> str:
        """Return why a column is no label, or "": all of its cells are numbers or missing."""
        comma = self.has_decimal_comma(place)
        text = [(n, cell) for n, cell in self._cells(place) if not is_number(cell, comma)]
        if not text:
            return ""
        count = len(self._cells(place))
        return f"text in {len(text)} of {count} rows, as {text[0][1][:40]!r} in row {text[0][0]}"


def read_table(path: Path, found: Layout) -> Iterator[Scanned]:
    """Yield each row with its SMILES as payload; cells that a row lacks are missing."""
    body = itertools.islice(rows(path, found.dialect), int(found.header is not None), None)
    for line, cells in body:
        width = len(cells)
        needed = 1 + max(found.smiles, found.name or 0, *found.places)
        cells += [""] * (needed - width)
        name = cells[found.name] if found.name is not None else ""
        yield line, name, *attempt(_smiles_and_labels, cells, found)


def _smiles_and_labels(cells: list[str], found: Layout) -> tuple[str, tuple[float, ...]]:
    if found.header and any(cells[len(found.header) :]):
        raise MoleculeError(
            f"{len(cells)} cells where the header has {len(found.header)}; quote a cell that holds "
            "the delimiter"
        )
    texts = [cells[place] for place in found.places]
    y = labels_from(texts, found.labels, found.decimal_comma)
    return cells[found.smiles], scale(y, found.factors)


def _find_smiles(
    path: Path, sample: list[list[str]], options: Options
) -> tuple[tuple[str, ...] | None, int]:
    """Return the header, or None, and the column of SMILES."""
    first = tuple(sample[0]) if sample else ()
    named = _named_smiles(first)
    if options.smiles_column in first:
        return first, first.index(options.smiles_column)
    if options.smiles_column is None and named is not None:
        return first, named
    body = sample[1 : SMILES_SAMPLE + 1]
    columns = [p for p in range(len(first)) if _are_smiles([c[p] for c in body if p < len(c)])]
    is_row = named is None and bool(columns) and _are_smiles([first[columns[0]]])
    header = None if is_row else first
    if options.smiles_column is not None:
        numbers = [str(place + 1) for place in range(len(first))]
        if named is not None or options.smiles_column not in numbers:
            require_name(path, "column", options.smiles_column, header or numbers)
        return None, numbers.index(options.smiles_column)  # without a header columns are numbered
    if len(sample) > 1 and columns:
        if len(columns) > 1 and header:
            names = ", ".join(first[place] for place in columns)
            raise MsdeError(f"{path}: columns {names} hold SMILES; choose one with --smiles-column")
        return header, columns[0]
    if len(first) > 1:
        raise MsdeError(
            f"{path}: no column holds SMILES, found {', '.join(first)[:300]}; choose one with "
            "--smiles-column"
        )
    return None, 0


def _named_smiles(first: Sequence[str]) -> int | None:
    exact = [place for place, name in enumerate(first) if name.lower() == "smiles"]
    loose = [place for place, name in enumerate(first) if "smiles" in name.lower()]
    loose.sort(key=lambda place: "isomeric" not in first[place].lower())
    return next(iter(exact + loose), None)


def _are_smiles(cells: Sequence[str]) -> bool:
    """Return whether more than half of the cells that are not empty are SMILES."""
    filled = [cell for cell in cells if cell]
    with rdBase.BlockLogs():
        good = sum(Chem.MolFromSmiles(cell, sanitize=False) is not None for cell in filled)
    return 2 * good > len(filled)
