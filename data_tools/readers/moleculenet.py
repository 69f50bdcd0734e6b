"""The tables of MoleculeNet (Wu et al. 2018, doi:10.1039/C7SC02664A), known by file name.

For each data set the columns and units are written down here; nothing is guessed. A blank label is
missing. There is no geometry; conformers are made as for `smiles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from msde.errors import MsdeError

from ..parsing.tables import layout, read_table, rows, with_units
from . import Facts, Options, Parsed, RawMolecule, same_for_all, source_name
from . import smiles as smiles_reader
from .qm9 import UNITS as QM9_UNITS

KEEP_HYDROGENS = False


@dataclass(frozen=True)
class Table:
    """Which columns of a data set's file matter."""

    labels: tuple[str, ...] | None = None  # None: all but those of SMILES and `others`
    smiles: str = "smiles"
    name: str | None = None
    others: tuple[str, ...] = ()
    units: tuple[tuple[str, str], ...] = ()


_SOLUBILITY = "measured log solubility in mols per litre"
TABLES = {
    "bace": Table(("Class", "pIC50"), smiles="mol", name="CID"),
    "bbbp": Table(("p_np",), name="name"),
    "cep": Table(("PCE",), units=(("PCE", "%"),)),
    "clintox": Table(("FDA_APPROVED", "CT_TOX")),
    "esol": Table((_SOLUBILITY,), name="Compound ID", units=((_SOLUBILITY, "log10(mol/L)"),)),
    "freesolv": Table(("expt",), name="iupac", units=(("expt", "kcal/mol"),)),
    "hiv": Table(("HIV_active",)),
    "lipophilicity": Table(("exp",), name="CMPD_CHEMBLID"),
    "malaria": Table(("activity",)),
    "muv": Table(others=("mol_id",)),
    "qm9": Table(tuple(QM9_UNITS), name="mol_id", units=tuple(QM9_UNITS.items())),
    "sider": Table(),
    "tox21": Table(name="mol_id", others=("mol_id",)),
    "toxcast": Table(),
}
# Other names under which the same tables go.
ALIASES = {
    "delaney-processed": "esol",
    "sampl": "freesolv",
    "toxcast_data": "toxcast",
    "cep-processed": "cep",
    "malaria-processed": "malaria",
    "lipo": "lipophilicity",
    "micro_qm9": "qm9",
}


def recognises(path: Path) -> bool:
    """Tell by the file name and by the columns that the data set has to have."""
    if not source_name(path).lower().endswith(".csv") or _stem(path) not in TABLES:
        return False
    header = _header(path)
    table = TABLES[_stem(path)]
    return {table.smiles, *(table.labels or ())} <= set(header)


def facts(paths: Sequence[Path], options: Options) -> Facts:
    """Return the labels of the data set with their units."""

    def labels(path: Path) -> tuple:
        found = layout(path, _fixed(path, options), ",").labels
        return with_units(found, dict(_table(path).units))

    return Facts(labels=same_for_all(paths, labels))


def read(path: Path, options: Options) -> Iterator[RawMolecule]:
    """Yield each row of the table."""
    return read_table(path, _fixed(path, options), ",")


def parse(raw: RawMolecule, options: Options) -> Parsed:
    """Parse the SMILES and make conformers, as for `smiles`."""
    return smiles_reader.parse(raw, options)


def _fixed(path: Path, options: Options) -> Options:
    """Fill in the columns that the user did not choose."""
    table = _table(path)
    header = _header(path)
    labels = table.labels
    if labels is None:
        apart = {table.smiles, table.name, *table.others}
        labels = tuple(name for name in header if name not in apart)
    name = table.name if table.name in header else None
    return replace(
        options,
        smiles_column=options.smiles_column or table.smiles,
        name_column=options.name_column or name,
        label_columns=labels if options.label_columns is None else options.label_columns,
    )


def _table(path: Path) -> Table:
    if _stem(path) not in TABLES:
        raise MsdeError(
            f"{path} is not named like a file of MoleculeNet ({', '.join(TABLES)}); "
            "--format smiles reads any table"
        )
    return TABLES[_stem(path)]


def _header(path: Path) -> list[str]:
    first = next(islice(rows(path, ","), 1), (0, []))[1]
    return [cell.strip() for cell in first]


def _stem(path: Path) -> str:
    stem = source_name(path).lower().removesuffix(".csv")
    return ALIASES.get(stem, stem)
