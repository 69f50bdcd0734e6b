"""Random tables, read by the converter and by pandas: no row, name or label differs in silence."""

import csv
import io
import json

import numpy as np
import pandas
import pytest
from rdkit import Chem

from fixtures.data_sets import molecules
from fixtures.formats import FLAT
from fixtures.molecules import NCI, SMILES
from fixtures.seeds import seeds
from msde.chem.parsing import MISSING
from msde.chem.rebuild import mol_from_record
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert
from msde.errors import MsdeError

POOL = [*SMILES, *(line.split()[0] for line in NCI.read_text().splitlines()[:60])]
BROKEN = ["C(C", "c1ccc", "CC O", "hello", "CN(C)(C)(C)C", "CCÄ", "-", "", "NA"]
NAMES = ["name", "Name", "ID", "title", "mol_id", "CID"]
SMILES_NAMES = ["smiles", "SMILES", "Smiles", "canonical_smiles", "SMILES (RDKit)"]
COLUMNS = ["gap", "logD, pH=7.4", "IC50 [nM]", "é_tot", "µ", "a;b", "x=y", "p|q", "gap", "2", "E 0"]
WORDS = [
    "x",
    "Ä2",
    "07",
    "a, b",
    "semi;colon",
    'say "hi"',
    "tab\tbed",
    "b|ar",
    "naïve",
    "-",
    "1e5",
    "",
]
DRESSES = ["", "NA", "NaN", "nan", "None", "n/a", "N/A", "-", "null", "#N/A"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]


class Table:
    """A random table: how it is written, and the cells of its rows."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng([7, seed])
        self.delimiter = rng.choice([",", ";", "\t", "|"])
        self.encoding = rng.choice(ENCODINGS)
        self.end = rng.choice(["\n", "\r\n", "\r"])
        self.has_decimal_commas = self.delimiter != "," and rng.random() < 0.3
        self.has_line = rng.random() < 0.15
        self.suffix = rng.choice([".csv", ".tsv", ".tab"]) if rng.random() < 0.3 else ".csv"
        columns = [("smiles", rng.choice(SMILES_NAMES))]
        columns += [("name", rng.choice(NAMES))] * (rng.random() < 0.7)
        labels = rng.choice(COLUMNS, rng.integers(0, 5), replace=False)
        columns += [("label", name) for name in labels]
        columns += [("text", "remark")] * (rng.random() < 0.4)
        self.columns = [columns[i] for i in rng.permutation(len(columns))]
        self.rows = [
            [self.cell(kind) for kind, _ in self.columns] for _ in range(rng.integers(1, 15))
        ]
        if len(self.columns) == 1:  # pandas takes an empty cell for a blank line
            self.rows = [row for row in self.rows if row[0]] or [["CCO"]]

    def cell(self, kind):
        rng = self.rng
        if kind == "smiles":
            return str(rng.choice(BROKEN)) if rng.random() < 0.15 else str(rng.choice(POOL))
        if kind == "label":
            if rng.random() < 0.2:
                return str(rng.choice(DRESSES))
            value = [rng.normal(), rng.integers(-99, 99), rng.normal() * 1e-7][rng.integers(3)]
            text = repr(float(value))
            return text.replace(".", ",") if self.has_decimal_commas else text
        start = "so " if kind == "text" else ""  # never a number
        return (
            start
            + str(rng.choice(WORDS))
            + (" " + str(rng.choice(WORDS)) if rng.random() < 0.2 else "")
        )

    def write(self, path):
        quoting = int(self.rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        pad = self.rng.random() < 0.3
        out = io.StringIO()
        if self.has_line:
            out.write(f"sep={self.delimiter}{self.end}")
        writer = csv.writer(out, delimiter=self.delimiter, lineterminator=self.end, quoting=quoting)
        for cells in [[name for _, name in self.columns], *self.rows]:
            writer.writerow([f" {cell}  " if pad and quoting and cell else cell for cell in cells])
            if self.rng.random() < 0.1:
                out.write(self.end)
        path.write_bytes(out.getvalue().encode(self.encoding))
        return path

    def read(self, path):
        """Read the table as pandas does, told how it is written."""
        # Blank lines that end in CR alone confuse pandas; here they end in LF.
        text = io.StringIO(path.read_text(encoding=self.encoding))
        frame = pandas.read_csv(
            text, sep=self.delimiter, dtype=str, header=None, keep_default_na=False,
            skiprows=int(self.has_line),
        )  # fmt: skip
        rows = [[str(cell).strip() for cell in row] for row in frame.to_numpy()]
        return rows[0], [row for row in rows[1:] if any(row) or len(row) > 1]

    def number(self, text):
        if text.lower() in MISSING:
            return np.nan
        return float(text.replace(",", ".") if self.has_decimal_commas else text)


def canonical(smiles):
    if smiles.lower() in MISSING or not smiles.isascii() or len(smiles.split()) > 1:
        return None
    mol = Chem.MolFromSmiles(smiles)
    return mol and Chem.MolToSmiles(mol)


def check(seed, folder):
    table = Table(seed)
    path = table.write(folder / f"t{table.suffix}")
    header, rows = table.read(path)
    kinds = [kind for kind, _ in table.columns]
    wanted = [(canonical(row[kinds.index("smiles")]), row) for row in rows]
    good = [(smiles, row) for smiles, row in wanted if smiles]
    if not good:
        with pytest.raises(MsdeError):
            convert([path], folder / "out", options=FLAT)
        return
    counts = convert([path], folder / "out", "smiles", options=FLAT)
    assert (counts["read"], counts["converted"]) == (len(rows), len(good))
    manifest = read_manifest(folder / "out")
    labels = [label["name"] for label in manifest["labels"]]
    expected = [
        name for (kind, _), name in zip(table.columns, header, strict=True) if kind == "label"
    ]
    assert sorted(labels) == sorted(dict.fromkeys(expected))
    said = [name for _, name in manifest["fields"]["taken"]] + list(manifest["fields"]["left_out"])
    assert set(header) <= set(said)
    for record, (smiles, row) in zip(molecules(folder / "out"), good, strict=True):
        assert Chem.CanonSmiles(Chem.MolToSmiles(mol_from_record(record))) == smiles
        if "name" in kinds:
            assert record.name == row[kinds.index("name")]
        y = [table.number(row[header.index(name)]) for name in labels]
        assert np.array_equal(record.y, y, equal_nan=True)
    with open(folder / "out/rejects.jsonl") as file:
        assert all(json.loads(line)["reason"] for line in file)


@pytest.mark.parametrize("seed", seeds(30, 300))
def test_tables_agree_with_pandas(tmp_path, seed):
    check(seed, tmp_path)
