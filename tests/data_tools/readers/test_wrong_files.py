"""Files of another kind, empty, cut off or damaged are one line, for readers of geometry."""

import random

import numpy as np
import pytest

from fixtures.pickled import fairchem_graphs, geom_pickle, qm9_graphs, unimol
from fixtures.readers import TRUST, embedded, numbers, positions, sd_record
from msde.chem.vocabulary import MoleculeError
from msde.data_tools.readers import get_reader
from msde.errors import MsdeError

SUFFIX = {
    "xyz": ".xyz", "ase": ".db", "md17": ".npz", "unimol": ".lmdb", "fairchem": ".aselmdb",
    "pyg": ".pt",
}  # fmt: skip
ADVICE = ("allow_pickle", "weights_only", "Traceback")


def outcome(format, path):
    """Read a file; errors other than those for users end the test."""
    texts = []
    reader = get_reader(format, TRUST)
    try:
        reader.facts([path])
        for raw in reader.read(path):
            try:
                reader.parse(raw)
            except MoleculeError as error:
                texts.append(str(error))
    except MsdeError as error:
        texts.append(str(error))
        assert str(path) in str(error)
    assert not [text for text in texts if "\n" in text or any(a in text for a in ADVICE)]
    return texts


def xyz(folder):
    mol = embedded("CCO")
    lines = [
        f"{a.GetSymbol()} {' '.join(map(str, p))} 1.0 2.0 3.0"
        for a, p in zip(mol.GetAtoms(), positions(mol)[0], strict=True)
    ]
    path = folder / "a.xyz"
    comment = "Properties=species:S:1:pos:R:3:forces:R:3 energy=1.5"
    path.write_text("\n".join(["9", comment, *lines, ""]))
    return path


def npz(folder):
    mol = embedded("CCO")
    arrays = {"z": numbers(mol), "R": positions(mol), "E": np.zeros(1), "charge": 0}
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def npy(folder):
    np.save(folder / "a.npy", np.zeros((4, 9, 3)))
    return folder / "a.npy"


def sqlite(folder):
    ase_db = pytest.importorskip("ase.db")
    from ase import Atoms

    mol = embedded("CCO")
    with ase_db.connect(folder / "a.db") as database:
        database.write(Atoms(numbers(mol), positions(mol)[0]), gap=1.0, data={"F": np.ones((9, 3))})
    return folder / "a.db"


def text(content):
    def write(folder):
        path = folder / "text"
        path.write_bytes(content)
        return path

    return write


WRONG = {
    "xyz": xyz,
    "npz": npz,
    "npy": npy,
    "ase": sqlite,
    "unimol": unimol,
    "fairchem": fairchem_graphs,
    "pyg": qm9_graphs,
    "geom": geom_pickle,
    "empty": text(b""),
    "blank lines": text(b"\n\n"),
    "zero": text(b"\0" * 100),
    "table": text(b"smiles,gap\nCCO,1\n"),
    "sdf": text(sd_record(embedded("CO")).encode()),
    "random": text(random.Random(1).randbytes(5000)),
    "huge count": text(b"9" * 30 + b"\n"),
    "no decimal digit": text("²\n".encode()),
}


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("kind", WRONG)
def test_files_of_another_kind_are_one_line(tmp_path, format, kind):
    content = WRONG[kind](tmp_path).read_bytes()
    path = tmp_path / f"wrong{SUFFIX[format]}"
    for share in (1, 0.9, 0.5):
        path.write_bytes(content[: int(len(content) * share)])
        texts = outcome(format, path)
        own = kind == format or (format, kind) in {("md17", "npz"), ("fairchem", "unimol")}
        assert texts or own or kind in ("blank lines", "empty")


OWN = {"xyz": xyz, "ase": sqlite, "md17": npz, "pyg": qm9_graphs}


@pytest.mark.parametrize("format", OWN)
def test_damaged_files_are_one_line(tmp_path, format):
    """Bytes are changed anywhere; LMDB files are in parsing/test_databases.py."""
    content, chance = OWN[format](tmp_path).read_bytes(), random.Random(3)
    path = tmp_path / f"damaged{SUFFIX[format]}"
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        outcome(format, path)
