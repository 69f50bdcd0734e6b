import numpy as np
import pytest

from fixtures.readers import ALL_HYDROGENS, convert, numbers, positions, real, recognised
from msde.data_tools.readers import FORMATS, Label, Options, get_reader

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
