"""The tables of MoleculeNet (Wu et al. 2018, doi:10.1039/C7SC02664A), known by file name.

TABLES lists the columns and units of each data set; nothing is guessed. A blank label is missing.
There is no geometry; conformers are made as for `smiles`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from msde.errors import MsdeError

from ..parsing import Facts, Options, Scanned
from ..parsing.files import has_suffix, source_name
from ..parsing.labels import conversions, scaled, with_units
from ..parsing.tables import Layout, header_of, layout, read_table
from . import smiles
from .qm9 import UNITS as QM9_UNITS


@dataclass(frozen=True)
class Table:
    """The columns of a data set's file."""

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
# Other names of the same tables.
ALIASES = {
    "delaney-processed": "esol",
    "sampl": "freesolv",
    "toxcast_data": "toxcast",
    "cep-processed": "cep",
    "malaria-processed": "malaria",
    "lipo": "lipophilicity",
    "micro_qm9": "qm9",
}


class Reader(smiles.Reader):
    def recognises(self, path: Path) -> bool:
        """Return whether the name is a data set's and the table has its columns."""
        if not has_suffix(path, (".csv",)) or table_name(path) not in TABLES:
            return False
        table = TABLES[table_name(path)]
        header = set(header_of(path, self.options))
        return table.smiles in header and (table.labels is None or bool(header & {*table.labels}))

    def survey(self, path: Path) -> tuple[Facts, tuple[Layout, tuple[float, ...]]]:
        found, table = layout(path, self._with_columns(path)), _table(path)
        header = header_of(path, self.options)
        absent = ", ".join(name for name in table.labels or () if name not in header)
        notes = (f"{path.name} lacks columns of its data set: {absent}",) if absent else ()
        units = dict(table.units)
        labels, factors = with_units(path, found.labels, units)
        notes += conversions(labels, units)
        return replace(found.facts, labels=labels, notes=notes), (found, factors)

    def scan(self, path: Path) -> Iterator[Scanned]:
        found, factors = self.survey(path)[1]
        return scaled(read_table(path, found), factors)

    def _with_columns(self, path: Path) -> Options:
        """Return the options with the columns that the user did not choose."""
        options, table, header = self.options, _table(path), header_of(path, self.options)
        labels = options.label_columns
        if labels is None:
            others = {table.smiles, table.name, *table.others}
            labels = tuple(name for name in table.labels or header if name in header)
            labels = tuple(name for name in labels if name not in others)
        return replace(
            options,
            smiles_column=options.smiles_column or table.smiles,
            name_column=options.name_column or (table.name if table.name in header else None),
            label_columns=labels,
        )


def _table(path: Path) -> Table:
    if table_name(path) not in TABLES:
        raise MsdeError(
            f"{path} is not named like a file of MoleculeNet ({', '.join(TABLES)}); "
            "--format smiles reads any table"
        )
    return TABLES[table_name(path)]


def table_name(path: Path) -> str:
    """Return the name of a file without its ending, of MoleculeNet's tables the one in TABLES."""
    stem = source_name(path).lower().removesuffix(".csv")
    return ALIASES.get(stem, stem)
