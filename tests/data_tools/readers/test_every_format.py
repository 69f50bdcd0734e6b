import sys
import types

import numpy as np
import pytest

from fixtures.readers import ALL_HYDROGENS, convert, embedded, numbers, positions, real, recognised
from msde.chem.record import Origin
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert as convert_files
from msde.data_tools.parsing import BaseReader
from msde.data_tools.parsing.types import Parsed
from msde.data_tools.readers import FORMATS, Label, Options, get_reader
from msde.errors import MsdeError

FORMAT_OF_FILE = {
    "md17/aspirin.npz": "md17",
    "md17/ethanol.npz": "md17",
    "md17/ethanol_raw_2000.xyz.gz": "xyz",
    "md17/malonaldehyde.npz": "md17",
    "md17/naphthalene.npz": "md17",
    "md17/salicylic_acid.npz": "md17",
    "md17/toluene.npz": "md17",
    "moleculenet/bbbp.csv": "moleculenet",
    "moleculenet/cep.csv.gz": "moleculenet",
    "moleculenet/clintox.csv": "moleculenet",
    "moleculenet/esol.csv": "moleculenet",
    "moleculenet/freesolv.csv": "moleculenet",
    "moleculenet/hiv.csv.gz": "moleculenet",
    "moleculenet/malaria.csv": "moleculenet",
    "moleculenet/muv.csv.gz": "moleculenet",
    "moleculenet/sider.csv": "moleculenet",
    "moleculenet/tox21.csv": "moleculenet",
    "moleculenet/toxcast.csv.gz": "moleculenet",
    "pretrain/dft8k.sdf.gz": "sdf",
    "pretrain/dft8k_mmff.sdf.gz": "sdf",
    "pretrain/gdb7.sdf.gz": "sdf",
    "pretrain/pcqm4mv2-2k.csv": "cxsmiles",
    "qm9/micro_qm9.csv": "moleculenet",
    "qm9/qm9_500.db": "ase",
    "smiles/pubchem_100k.tsv.gz": "smiles",
    "smiles/qm9_133885.csv.gz": "smiles",
}


@pytest.mark.parametrize("name", FORMAT_OF_FILE)
def test_real_files_are_recognised(name):
    assert recognised(real(name)) == FORMAT_OF_FILE[name]


@pytest.mark.parametrize(
    ("name", "limit", "accepted", "reasons"),
    [
        ("pretrain/dft8k.sdf.gz", 1000, 1000, {}),
        (
            "pretrain/gdb7.sdf.gz",
            None,
            6257,
            {
                "cannot be parsed": 331,
                "radical": 578,
                "the geometry lacks hydrogens that its bonds imply": 3,
            },
        ),
        (
            "pretrain/pcqm4mv2-2k.csv",
            None,
            1792,
            {"the geometry lacks hydrogens that the SMILES implies": 207},
        ),
        ("qm9/qm9_500.db", None, 494, {"bonds cannot be perceived": 6}),
        ("md17/ethanol_raw_2000.xyz.gz", 500, 500, {}),
        ("md17/aspirin.npz", 200, 200, {}),
    ],
)
def test_counts_of_real_geometry(name, limit, accepted, reasons):
    _, parsed, rejected = convert(real(name), ALL_HYDROGENS, limit)
    assert (len(parsed), rejected) == (accepted, reasons)


@pytest.mark.parametrize("name", ["md17/toluene.npz", "md17/ethanol_raw_2000.xyz.gz"])
def test_forces_follow_the_atoms_that_remain(name):
    path = real(name)
    _, full, _ = convert(path, limit=5)
    _, heavy, _ = convert(path, Options(keep_hydrogens=False), limit=5)
    assert len(heavy) == 5
    for line, one in heavy.items():
        kept = numbers(full[line].mol) > 1
        assert (numbers(one.mol) > 1).all()
        assert np.array_equal(one.forces, full[line].forces[:, kept])
        assert np.array_equal(positions(one.mol), positions(full[line].mol)[:, kept])


def test_options_default_to_those_of_the_format():
    assert Options().hydrogens(True) and not Options().hydrogens(False)
    assert Options(keep_hydrogens=False).hydrogens(True) is False
    assert Options().chosen_labels() is None
    assert Options(label_columns=("a=eV", "b")).chosen_labels() == (Label("a", "eV"), Label("b"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_reader(name):
    reader = get_reader(name)
    assert isinstance(reader.keep_hydrogens, bool)
    assert all(callable(getattr(reader, part)) for part in ("recognises", "facts", "read", "parse"))


class Mol2(BaseReader):
    """What a new format has to define."""

    suffixes = (".mol2",)

    def scan(self, path):
        for line, text in enumerate(path.read_text().splitlines(), start=1):
            yield line, "", text, ()

    def build(self, raw):
        return Parsed(embedded(raw.payload), origin=Origin.CONFORMERS_MADE)


def test_a_new_format_is_one_module_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "msde.data_tools.readers.mol2", types.SimpleNamespace(Reader=Mol2)
    )
    monkeypatch.setattr("msde.data_tools.reading.FORMATS", (*FORMATS, "mol2"))
    (tmp_path / "m.mol2").write_text("CCO\nCO\n")
    counts = convert_files([tmp_path / "m.mol2"], tmp_path / "out")
    assert counts["converted"] == 2
    assert read_manifest(tmp_path / "out")["source"]["format"] == "mol2"


def test_files_that_differ_in_forces_are_an_error(tmp_path):
    mol = embedded("CCO")
    arrays = {"z": numbers(mol), "R": positions(mol), "E": np.zeros(1)}
    np.savez(tmp_path / "a.npz", **arrays, F=np.zeros((1, 9, 3)))
    np.savez(tmp_path / "b.npz", **arrays)
    np.savez(tmp_path / "c.npz", **arrays, F=np.zeros((1, 9, 3)), r_unit=np.array("bohr"))
    reader = get_reader("md17")
    for other, message in [
        ("b.npz", "b.npz has no forces"),
        ("c.npz", "has forces in kcal/mol/a0"),
    ]:
        with pytest.raises(MsdeError, match=f"a.npz has forces in kcal/mol/A, but .*{message}"):
            reader.facts([tmp_path / "a.npz", tmp_path / other])
