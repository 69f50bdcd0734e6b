import base64
import collections
import csv
import gzip
import itertools
import json
import pickle
import sqlite3
import sys
import zlib

import lmdb
import msgpack
import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch_geometric.data import Data, InMemoryDataset

from fixtures.paths import DATA
from msde.chem.conformers import embed_conformer, embed_conformers
from msde.chem.parsing import silence_rdkit
from msde.chem.record import Origin, molecule_uid, record_from_mol
from msde.chem.vocabulary import MoleculeError
from msde.data_tools.parsing import labels, perception
from msde.data_tools.readers import FORMATS, Label, Options, get_reader, qm9
from msde.data_tools.readers import ase as ase_reader
from msde.errors import MsdeError

silence_rdkit()
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
TRUST = Options(trust_pickle=True)
ALL_HYDROGENS = Options(keep_hydrogens=True)
SMILES = ["CCO", "C[C@H](N)C(=O)O", "c1ccccc1O", "C/C=C/Cl", "C[N+](C)(C)CC(=O)[O-]"]


def real(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; MSDE_DATA_DIR can say where the data are")
    return path


def recognised(path):
    return next((name for name in FORMATS if get_reader(name).recognises(path)), None)


def convert(path, options=None, limit=None, format=None):
    """Return facts, what was parsed by line, and the first words of reasons with their counts."""
    options = options or Options()
    reader = get_reader(format or recognised(path), options)
    facts = reader.facts([path])
    parsed, reasons = {}, collections.Counter()
    for raw in itertools.islice(reader.read(path), limit):
        raw = pickle.loads(pickle.dumps(raw))  # as on its way to a worker
        try:
            parsed[raw.line] = reader.parse(raw)
        except MoleculeError as error:
            reasons[str(error).partition(":")[0]] += 1
            continue
        check(parsed[raw.line], facts)
    return facts, parsed, dict(reasons)


def check(parsed, facts):
    """What is parsed has to fit what is said of the file, and to make a record."""
    assert len(parsed.y) == len(facts.labels)
    shape = (parsed.mol.GetNumConformers(), parsed.mol.GetNumAtoms(), 3)
    assert (parsed.forces is None) == (facts.forces_unit is None)
    assert parsed.forces is None or parsed.forces.shape == shape
    flat = bool(parsed.origin & Origin.NO_GEOMETRY)
    record_from_mol(
        parsed.mol, 1, y=parsed.y, forces=parsed.forces, topology_only=flat, origin=parsed.origin
    )


def smiles_of(parsed):
    return Chem.MolToSmiles(Chem.RemoveHs(parsed.mol))


def embedded(smiles, count=1):
    mol = embed_conformers(Chem.MolFromSmiles(smiles), 7, count, keep_hydrogens=True)
    Chem.AssignStereochemistryFrom3D(mol)
    return mol


def sd_record(mol, title="", **properties):
    mol = Chem.Mol(mol)
    mol.SetProp("_Name", title)
    lines = "".join(f"> <{name}>\n{value}\n\n" for name, value in properties.items())
    return f"{Chem.MolToMolBlock(mol)}{lines}$$$$\n"


def positions(mol):
    return np.stack([conformer.GetPositions() for conformer in mol.GetConformers()])


def numbers(mol):
    return np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])


def write_lmdb(path, records):
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in records.items():
                transaction.put(str(key).encode(), value)


# Real files


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


def test_radicals_of_bad_bonds_are_the_last_of_dft8k():
    path, reader = real("pretrain/dft8k.sdf.gz"), get_reader("sdf")
    raws = [raw for raw in reader.read(path) if "M  RAD" in raw.payload.blocks[0]]
    assert len(raws) == 21
    for raw in raws:
        with pytest.raises(MoleculeError, match="radical"):
            reader.parse(raw)
        get_reader("sdf", Options(keep_radicals=True)).parse(raw)


def test_lines_are_where_records_begin():
    path = real("pretrain/gdb7.sdf.gz")
    with gzip.open(path, "rt") as file:
        lines = file.read().split("\n")
    raws = list(get_reader("sdf").read(path))
    assert len(raws) == 7169
    assert all(lines[raw.line - 1].strip() == raw.name for raw in raws)


@pytest.mark.parametrize(
    ("name", "labels", "unit", "bad"),
    [
        ("bbbp.csv", ["p_np"], "", 11),
        ("tox21.csv", 12, "", 8),
        ("sider.csv", 27, "", 20),
        ("clintox.csv", ["FDA_APPROVED", "CT_TOX"], "", 0),
        ("esol.csv", ["measured log solubility in mols per litre"], "log10(mol/L)", 0),
        ("freesolv.csv", ["expt"], "kcal/mol", 0),
        ("toxcast.csv.gz", 617, "", 0),
        ("muv.csv.gz", 17, "", 0),
        ("hiv.csv.gz", ["HIV_active"], "", 1),
        ("malaria.csv", ["activity"], "", 0),
        ("cep.csv.gz", ["PCE"], "%", 0),
    ],
)
def test_labels_of_moleculenet(name, labels, unit, bad):
    path = real(f"moleculenet/{name}")
    whole = name in ("bbbp.csv", "tox21.csv", "sider.csv", "esol.csv", "freesolv.csv")
    facts, parsed, rejected = convert(path, Options(conformers=0), None if whole else 400)
    names = [label.name for label in facts.labels]
    assert len(names) == labels if isinstance(labels, int) else names == labels
    assert {label.unit for label in facts.labels} == {unit}
    assert sum(rejected.values()) == bad
    assert all(p.origin == Origin.NO_GEOMETRY for p in parsed.values())
    with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
        rows = dict(enumerate(csv.DictReader(file), start=2))
    for line, one in list(parsed.items())[:50]:
        texts = [rows[line][label] for label in names]
        assert [np.isnan(y) for y in one.y] == [text == "" for text in texts]
        assert [y for y in one.y if not np.isnan(y)] == [float(text) for text in texts if text]


def test_units_of_qm9_and_of_a_database():
    facts, parsed, _ = convert(real("qm9/micro_qm9.csv"), Options(conformers=0), 10)
    units = {label.name: label.unit for label in facts.labels}
    assert len(units) == 19
    assert (units["mu"], units["r2"], units["u0_atom"]) == ("D", "a0^2", "kcal/mol")
    assert parsed[2].y[3:5] == (0, 13.21)
    facts, parsed, _ = convert(real("qm9/qm9_500.db"), limit=3)
    # The file does not say that it is eV; that it is tells the table above, in Hartree.
    assert facts.labels == (Label("energy_U0", ""),)
    assert parsed[1].y[0] == pytest.approx(-40.47893 * 27.211386, abs=1e-3)
    assert parsed[1].mol.GetNumAtoms() == 5


def test_md17_agrees_with_its_arrays():
    path = real("md17/toluene.npz")
    facts, parsed, _ = convert(path, limit=20)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    arrays = np.load(path)
    for frame, one in parsed.items():
        assert smiles_of(one) == "Cc1ccccc1"
        assert one.origin == Origin.BONDS_PERCEIVED
        assert one.y[0] == arrays["E"][frame - 1]
        assert np.array_equal(one.forces[0], arrays["F"][frame - 1])
        assert np.array_equal(positions(one.mol)[0], arrays["R"][frame - 1])


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


def test_a_unit_that_the_file_lacks_can_be_given():
    path = real("md17/ethanol_raw_2000.xyz.gz")
    facts, parsed, _ = convert(path, Options(label_columns=("energy=kcal/mol",)), 1)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    assert parsed[1].y[0] == -97195.01189948035
    assert get_reader("xyz").facts([path]).forces_unit == ""


def test_a_table_without_header_is_read():
    facts, parsed, rejected = convert(
        real("smiles/pubchem_100k.tsv.gz"), Options(conformers=0), limit=500
    )
    assert facts.labels == () and len(parsed) == 500 and not rejected
    raw = next(get_reader("smiles").read(real("smiles/pubchem_100k.tsv.gz")))
    assert raw.payload == "CCOC(=O)c1cc(-c2ccccn2)c(=O)n2ccccc12"


# SMILES


def test_conformers_depend_on_the_place_alone(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("smiles name\nCCO ethanol\nCCCO propanol\nC.C(\n")
    _, parsed, rejected = convert(path, Options(conformers=4))
    assert rejected == {"cannot be parsed": 1}
    assert [one.mol.GetNumConformers() for one in parsed.values()] == [4, 4]
    assert all(one.origin == Origin.CONFORMERS_MADE for one in parsed.values())
    again = convert(path, Options(conformers=4))[1]
    assert np.array_equal(positions(parsed[3].mol), positions(again[3].mol))
    single = convert(path)[1][3].mol
    expected = embed_conformer(Chem.MolFromSmiles("CCCO"), molecule_uid("a.smi", 3))
    assert np.array_equal(positions(single), positions(expected))
    flat = convert(path, Options(conformers=0, keep_hydrogens=True))[1][2]
    assert flat.origin == Origin.NO_GEOMETRY
    assert (flat.mol.GetNumConformers(), flat.mol.GetNumAtoms()) == (0, 9)


def test_columns_of_a_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "\ufeffid,Canonical_SMILES,gap,group,blank,idx\n"
        'm1,CCO,1.5,a,,1\n\nm2,"CO ",,b,,2\nm3,C,n/a,c\nm4,CC,wrong,d,,4\n'
    )
    options = Options(conformers=0)
    assert recognised(path) == "smiles"
    assert get_reader("smiles", options).facts([path]).labels == (Label("blank"),)
    options = Options(conformers=0, label_columns=("gap=eV",))
    facts, parsed, rejected = convert(path, options)
    assert facts.labels == (Label("gap", "eV"),)
    assert np.array_equal([parsed[line].y[0] for line in (2, 4, 5)], [1.5, np.nan, np.nan], True)
    assert rejected == {"label gap is not a number": 1}
    names = [raw.name for raw in get_reader("smiles", options).read(path)]
    assert names == ["m1", "m2", "m3", "m4"]
    options = Options(smiles_column="Canonical_SMILES", name_column="group", label_columns=())
    assert next(get_reader("smiles", options).read(path)).name == "a"


@pytest.mark.parametrize("wanted", ["smiles_column", "name_column", "label_columns"])
def test_a_column_that_is_not_there_is_told(tmp_path, wanted):
    path = tmp_path / "t.csv"
    path.write_text("smiles,gap\nC,1\n")
    options = Options(**{wanted: ("none",) if wanted == "label_columns" else "none"})
    with pytest.raises(MsdeError, match="no column 'none'"):
        get_reader("smiles", options).facts([path])


def test_tables_with_other_labels_do_not_mix(tmp_path):
    (tmp_path / "a.csv").write_text("smiles,gap\nC,1\n")
    (tmp_path / "b.csv").write_text("smiles,mu\nC,1\n")
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(MsdeError, match="--label-columns"):
        get_reader("smiles").facts(paths)
    assert get_reader("smiles", Options(label_columns=())).facts(paths).labels == ()


def test_numbers_and_what_is_missing():
    assert labels.number(" 1e-3") == 1e-3
    assert all(np.isnan(labels.number(text)) for text in ("", " ", "NaN", "n/a", "None"))
    for text in ("inf", "1.2.3", "C"):
        with pytest.raises(ValueError):
            labels.number(text)


def test_a_molecule_too_large_to_embed_is_refused(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("C" * 1100 + "\n")
    assert convert(path, Options(max_atoms=2000))[2] == {"more than 1024 atoms": 1}


# SD files


def test_properties_of_sd_files_are_labels(tmp_path):
    path = tmp_path / "a.sdf"
    records = [
        sd_record(embedded("CCO"), "a", gap="1.5", note="x", mu="2"),
        sd_record(embedded("CO"), "b", gap="", note="3", mu="bad"),
        sd_record(embedded("C"), "c", note="1"),
    ]
    path.write_text("".join(records).replace("\n", "\r\n"))
    facts, parsed, rejected = convert(path, Options(label_columns=("gap=eV",)))
    assert facts.labels == (Label("gap", "eV"),) and not rejected
    assert np.array_equal([one.y[0] for one in parsed.values()], [1.5, np.nan, np.nan], True)
    assert get_reader("sdf").facts([path]).labels == (Label("gap"),)
    assert convert(path, Options(label_columns=("mu",)))[2] == {"label mu is not a number": 1}
    with pytest.raises(MsdeError, match="no property 'lumo', found gap, note, mu"):
        get_reader("sdf", Options(label_columns=("lumo",))).facts([path])


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_records_are_cut_alike_whatever_is_read_at_a_time(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("msde.data_tools.parsing.sd_files.CHUNK", chunk)
    path = tmp_path / "a.sdf"
    path.write_text("a\nb\n$$$$\n\nc\n$$$$ more\n\n$$$$\nlast\nx\n$$$$")
    raws = list(get_reader("sdf").read(path))
    found = [(raw.line, raw.name, raw.payload.blocks[0]) for raw in raws]
    assert found == [(1, "a", "a\nb"), (4, "", "\nc"), (7, "", ""), (9, "last", "last\nx")]


def test_a_record_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("msde.data_tools.parsing.sd_files.MAX_RECORD", 1000)
    path = tmp_path / "a.sdf"
    path.write_text("x\n" * 1000)
    with pytest.raises(MsdeError, match="the record that begins in line 1 does not end"):
        get_reader("sdf").facts([path])


def test_neighbours_become_conformers_if_asked(tmp_path):
    left, right = embedded("C[C@H](N)C(=O)O", 3), embedded("C[C@@H](N)C(=O)O")
    blocks = [sd_record(Chem.Mol(left, confId=c.GetId()), "ala") for c in left.GetConformers()]
    records = [*blocks[:2], sd_record(right, "ala"), blocks[2], sd_record(embedded("CO"), "ala")]
    records += [sd_record(embedded("CO"), "")] * 2
    path = tmp_path / "a.sdf"
    path.write_text("".join(records))
    assert len(convert(path)[1]) == 7
    _, parsed, rejected = convert(path, Options(group_conformers=True))
    assert not rejected
    assert [one.mol.GetNumConformers() for one in parsed.values()] == [3, 1, 1, 1]
    first = parsed[1]
    line = sum(record.count("\n") for record in records[:2]) + 1
    assert first.dropped == ((line, "conformer: isomeric SMILES differs from the first's"),)
    heavy = numbers(left) > 1
    assert np.allclose(positions(first.mol), positions(left)[:, heavy], atol=1e-4)


def test_hydrogens_that_lack_are_told(tmp_path):
    mol = embedded("CCO")
    some = Chem.RWMol(mol)
    some.RemoveAtom(mol.GetNumAtoms() - 1)
    none = Chem.RemoveHs(mol)
    path = tmp_path / "a.sdf"
    path.write_text(sd_record(mol) + sd_record(some.GetMol()) + sd_record(none))
    reason = "the geometry lacks hydrogens that its bonds imply"
    assert convert(path)[2] == {reason: 1}
    assert convert(path, ALL_HYDROGENS)[2] == {reason: 2}


def test_stereo_comes_from_coordinates(tmp_path):
    path = tmp_path / "a.sdf"
    path.write_text("".join(sd_record(embedded(smiles)) for smiles in SMILES))
    _, parsed, _ = convert(path)
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]


# PCQM4Mv2 and QM9


def pcqm4mv2(folder, table_of=SMILES, name="pcqm4m-v2-train.sdf.gz"):
    with gzip.open(folder / name, "wt") as file:
        file.writelines(sd_record(Chem.RemoveHs(embedded(smiles))) for smiles in SMILES)
    with gzip.open(folder / "data.csv.gz", "wt") as file:
        file.write("idx,smiles,homolumogap\n")
        file.writelines(f"{i},{smiles},{i}.5\n" for i, smiles in enumerate(table_of))
        file.write(f"{len(table_of)},CCCC,\n")
    return folder / name


def test_pcqm4mv2_joins_geometry_and_gap(tmp_path):
    path = pcqm4mv2(tmp_path)
    assert recognised(path) == recognised(tmp_path / "data.csv.gz") == "pcqm4mv2"
    facts, parsed, rejected = convert(path)
    assert facts.labels == (Label("homolumogap", "eV"),) and not rejected
    assert [one.y for one in parsed.values()] == [(i + 0.5,) for i in range(len(SMILES))]
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]
    assert all(one.origin == Origin.SOURCE for one in parsed.values())
    assert not list(get_reader("pcqm4mv2").read(tmp_path / "data.csv.gz"))
    assert sum(convert(path, ALL_HYDROGENS)[2].values()) == len(SMILES)


def test_pcqm4mv2_refuses_rows_that_do_not_fit(tmp_path):
    path = pcqm4mv2(tmp_path, [SMILES[1], SMILES[0], *SMILES[2:4]])
    _, parsed, rejected = convert(path)
    # The last record meets the row after the table's last, of another molecule.
    assert (len(parsed), rejected) == (2, {"wrong label alignment": 3})
    (tmp_path / "data.csv.gz").unlink()
    with pytest.raises(MsdeError, match="data.csv.gz is not beside"):
        get_reader("pcqm4mv2").facts([path])


def gdb9(folder):
    (folder / "gdb9.sdf").write_text(
        "".join(sd_record(embedded(s), f"gdb_{i}") for i, s in enumerate(SMILES, start=1))
    )
    columns = list(qm9.UNITS)
    with open(folder / "gdb9.sdf.csv", "w") as file:
        file.write(f"mol_id,{','.join(columns)}\n")
        for i in range(1, len(SMILES) + 1):
            file.write(f"gdb_{i if i != 4 else 40},{','.join(str(i + c) for c in range(19))}\n")
    return folder / "gdb9.sdf"


def test_qm9_joins_geometry_and_table(tmp_path):
    path = gdb9(tmp_path)
    assert recognised(path) == recognised(tmp_path / "gdb9.sdf.csv") == "qm9"
    facts, parsed, rejected = convert(path)
    assert [label.unit for label in facts.labels][:7] == ["GHz"] * 3 + ["D", "a0^3", "Ha", "Ha"]
    assert "3054 molecules are kept" in facts.notes[0]
    assert rejected == {"wrong label alignment": 1}
    assert [one.y[0] for one in parsed.values()] == [1, 2, 3, 5]
    assert next(iter(parsed.values())).mol.GetNumAtoms() == 9
    facts, parsed, _ = convert(path, Options(label_columns=("gap", "mu")))
    assert facts.labels == (Label("gap", "Ha"), Label("mu", "D"))
    assert next(iter(parsed.values())).y == (8, 4)


def test_qm9_refuses_what_is_uncharacterized(tmp_path):
    path = gdb9(tmp_path)
    text = "uncharacterized molecules\n=====\n  Index  SMILES\n      2  C  N\n      3  O  O\n"
    (tmp_path / "uncharacterized.txt").write_text(text)
    facts, parsed, rejected = convert(path)
    assert facts.notes == ("2 molecules of uncharacterized.txt are rejected",)
    assert rejected == {"listed in uncharacterized.txt": 2, "wrong label alignment": 1}
    (tmp_path / "gdb9.sdf.csv").unlink()
    with pytest.raises(MsdeError, match="gdb9.sdf.csv is not beside"):
        get_reader("qm9").facts([path])


# Bonds perceived


def test_md17_in_other_layouts(tmp_path):
    mol = embedded("CCO", 3)
    fields = {
        "nuclear_charges": numbers(mol),
        "coords": positions(mol) / 0.529177210903,
        "energies": np.arange(3.0),
        "forces": -positions(mol),
        "r_unit": np.array("bohr"),
        "e_unit": np.array(b"eV"),
    }
    np.savez(tmp_path / "rmd17.npz", **fields)
    facts, parsed, _ = convert(tmp_path / "rmd17.npz")
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/a0")
    assert np.allclose(positions(parsed[2].mol)[0], positions(mol)[1])
    assert np.array_equal(parsed[3].forces[0], -positions(mol)[2])
    np.savez(tmp_path / "bare.npz", z=numbers(mol), R=positions(mol))
    facts, parsed, _ = convert(tmp_path / "bare.npz")
    assert (facts.labels, facts.forces_unit, len(parsed)) == ((), None, 3)


def test_md17_takes_bonds_from_the_first_frame_that_has_them(tmp_path):
    mol = embedded("CCO", 2)
    place = positions(mol)
    place[0, 0] += 50  # an atom far away
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place, E=np.zeros(2))
    _, parsed, _ = convert(tmp_path / "a.npz")
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CCO"]
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place[:1], E=np.zeros(1))
    with pytest.raises(MsdeError, match="several fragments"):
        list(get_reader("md17").read(tmp_path / "a.npz"))


def test_md17_loads_no_objects(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.array([1, None], object), R=np.zeros((1, 2, 3)))
    assert recognised(tmp_path / "a.npz") == "md17"
    with pytest.raises(MsdeError, match="cannot be read"):
        get_reader("md17", TRUST).facts([tmp_path / "a.npz"])


def xyz_frame(mol, comment):
    rows = zip(mol.GetAtoms(), positions(mol)[0], strict=True)
    atoms = (f"{atom.GetSymbol()} {p[0]:.6f} {p[1]:.6f} {p[2]:.6f}\n" for atom, p in rows)
    return f"{mol.GetNumAtoms()}\n{comment}\n{''.join(atoms)}"


def test_plain_xyz(tmp_path):
    frames = [
        xyz_frame(embedded("CCO"), "ethanol"),
        xyz_frame(embedded("CC(=O)[O-]"), "charge=-1"),
        xyz_frame(embedded("O.O"), ""),
        xyz_frame(embedded("CO"), 'Lattice="9 0 0 0 9 0 0 0 9"'),
        "1\n\nXx 0 0 0\n",
    ]
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(frames))
    assert recognised(path) == "xyz"
    facts, parsed, rejected = convert(path)
    assert (facts.labels, facts.forces_unit) == ((), None)
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CC(=O)[O-]"]
    assert rejected == {
        "perceived bonds leave several fragments": 1,
        "periodic": 1,
        "cannot be parsed": 1,
    }
    path.write_text("3\n\nH 0 0 0\n")
    with pytest.raises(MsdeError, match="line 1 is cut off"):
        get_reader("xyz").facts([path])


def test_xyz_that_ase_writes(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    mol = embedded("CCO")
    atoms = ase.Atoms(numbers(mol), positions(mol)[0])
    atoms.info["dipole_norm"] = 1.5
    forces = np.arange(27.0).reshape(9, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-2.5, forces=forces)
    write(tmp_path / "a.extxyz", [atoms, atoms])
    facts, parsed, _ = convert(tmp_path / "a.extxyz")
    assert {label.name for label in facts.labels} == {"dipole_norm", "energy"}
    assert facts.forces_unit == ""
    assert np.array_equal(parsed[12].forces[0], forces)
    assert set(parsed[12].y) == {1.5, -2.5}


def test_perceived_radicals_are_refused():
    reader = perception
    mol = embedded("CCO")
    with pytest.raises(MoleculeError, match="bonds cannot be perceived"):
        reader.parse_system(reader.System(numbers(mol), positions(mol)[0], charge=5), ALL_HYDROGENS)
    for bad in (np.array([0]), np.array([130]), np.array([], int)):
        with pytest.raises(MoleculeError):
            reader.parse_system(reader.System(bad, np.zeros((len(bad), 3))), ALL_HYDROGENS)
    radical = Chem.AddHs(Chem.MolFromSmiles("C[CH2]"))
    rdDistGeom.EmbedMolecule(radical, 1)
    with pytest.raises(MoleculeError):
        reader.parse_system(reader.System(numbers(radical), positions(radical)[0]), ALL_HYDROGENS)


def test_ase_databases_of_every_version(tmp_path):
    ase_db = pytest.importorskip("ase.db")
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    path = tmp_path / "new.db"
    with ase_db.connect(path) as database:
        for number, smiles in enumerate(("CCO", "CC")):
            mol = embedded(smiles)
            atoms = Atoms(numbers(mol), positions(mol)[0])
            forces = np.full((len(atoms), 3), number + 0.5)
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - number, forces=forces)
            database.write(atoms, gap=0.25, data={"U0": np.array([2.5]), "mu": np.zeros(3)})
        database.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=[9, 9, 9], pbc=True))
        database.metadata = {"_property_unit_dict": {"U0": "Hartree"}}
    assert recognised(path) == "ase"
    options = Options(label_columns=("energy", "gap", "U0"))
    facts, parsed, rejected = convert(path, options)
    assert facts.labels == (Label("energy", "eV"), Label("gap"), Label("U0", "Hartree"))
    assert facts.forces_unit == "eV/A"
    assert [one.y for one in parsed.values()] == [(-1, 0.25, 2.5), (-2, 0.25, 2.5)]
    assert (parsed[2].forces == 1.5).all()
    assert rejected == {"periodic": 1}
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (a INTEGER)")
    assert recognised(tmp_path / "other.db") is None
    with pytest.raises(MsdeError, match="cannot be read as a database of ASE"):
        get_reader("ase").facts([tmp_path / "other.db"])


# GEOM


def geom_entry(mol, **known):
    rows = [np.column_stack([numbers(mol), place]).tolist() for place in positions(mol)]
    conformers = [{"xyz": xyz, "totalenergy": -1.0, "boltzmannweight": 0.5} for xyz in rows]
    return {"conformers": conformers, "totalconfs": len(rows), "charge": 0, **known}


def test_geom_msgpack(tmp_path):
    path = tmp_path / "drugs_crude.msgpack"
    alanine, other = embedded("C[C@H](N)C(=O)O", 4), embedded("C[C@@H](N)C(=O)O")
    entry = geom_entry(alanine, lowestenergy=-3.5, active=1)
    broken = json.loads(json.dumps(entry["conformers"][1]))
    broken["xyz"][-1][1] += 30  # a hydrogen that has left
    entry["conformers"] += [broken, *geom_entry(other)["conformers"]]
    acetate = geom_entry(embedded("CC(=O)[O-]"), charge=-1)
    with open(path, "wb") as file:
        file.write(msgpack.packb({"C[C@H](N)C(=O)O": entry, "CC(=O)[O-]": acetate}))
        file.write(msgpack.packb({"CCN": geom_entry(embedded("CCO")), "C": {"conformers": []}}))
    assert recognised(path) == "geom"
    facts, parsed, rejected = convert(path)
    units = {label.name: label.unit for label in facts.labels}
    assert units["lowestenergy"] == "Ha"
    assert smiles_of(parsed[1]) == Chem.CanonSmiles("C[C@H](N)C(=O)O")
    assert smiles_of(parsed[2]) == "CC(=O)[O-]"
    heavy = numbers(alanine) > 1
    assert np.allclose(positions(parsed[1].mol), positions(alanine)[:, heavy])
    assert [place for place, _ in parsed[1].dropped] == [5, 6]
    assert "stereochemistry" in parsed[1].dropped[1][1]
    assert parsed[1].y[list(units).index("lowestenergy")] == -3.5
    assert np.isnan(parsed[2].y[list(units).index("lowestenergy")])
    assert sum(rejected.values()) == 2
    assert convert(path, Options(label_columns=("active",)))[1][1].y == (1,)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MsdeError, match="cut off"):
        list(get_reader("geom").read(path))


def geom_pickle(folder):
    mol = embedded("C[C@H](N)C(=O)O", 3)
    mols = [Chem.Mol(mol, confId=conformer.GetId()) for conformer in mol.GetConformers()]
    known = {"conformers": [{"rd_mol": m} for m in mols], "totalconfs": 3, "temperature": 298.15}
    path = folder / "alanine.pickle"
    path.write_bytes(pickle.dumps(known))
    return path


def test_geom_pickles(tmp_path):
    path = geom_pickle(tmp_path)
    facts, parsed, _ = convert(path, TRUST)
    assert parsed[1].mol.GetNumConformers() == 3
    labels = dict(zip([label.name for label in facts.labels], parsed[1].y, strict=True))
    assert (labels["totalconfs"], labels["temperature"]) == (3, 298.15)
    path.write_bytes(b"no pickle")
    assert convert(path, TRUST)[2] == {"cannot be unpickled": 1}


# LMDB


def unimol(folder):
    path = folder / "ligands.lmdb"
    records = {}
    for place, smiles in enumerate(SMILES):
        mol = embedded(smiles, 2)
        flat = positions(mol)[0] * [1, 1, 0]
        coordinates = [*positions(mol).astype(np.float32), flat.astype(np.float32)]
        entry = {
            "atoms": [atom.GetSymbol() for atom in mol.GetAtoms()],
            "coordinates": coordinates,
            "smi": smiles if place != 2 else "CCCC",
            "target": np.array([place + 0.5, 1.0]),
        }
        records[place] = pickle.dumps(entry)
    write_lmdb(path, records)
    return path


def test_unimol(tmp_path):
    path = unimol(tmp_path)
    assert recognised(path) == "unimol"
    facts, parsed, rejected = convert(path, TRUST)
    assert [label.name for label in facts.labels] == ["target_0", "target_1"]
    assert rejected == {"its SMILES has other atoms than its geometry": 1}
    assert list(parsed) == [1, 2, 4, 5]
    for line, one in parsed.items():
        assert one.mol.GetNumConformers() == 2 and one.y == (line - 0.5, 1)
        assert smiles_of(one) == Chem.CanonSmiles(SMILES[line - 1])
    full = convert(path, Options(trust_pickle=True, keep_hydrogens=True))[1][1]
    assert np.allclose(positions(full.mol), positions(embedded("CCO", 2)), atol=1e-5)


def fairchem_graphs(folder):
    path = folder / "s2ef.lmdb"
    mol = embedded("CCO")
    fields = {
        "pos": torch.tensor(positions(mol)[0], dtype=torch.float32),
        "atomic_numbers": torch.tensor(numbers(mol), dtype=torch.float32),
        "force": torch.arange(27.0).reshape(9, 3),
    }
    molecule = Data(y=-1.5, **fields)
    surface = Data(y=-2.5, cell=torch.eye(3)[None] * 20, **fields)
    write_lmdb(path, {0: pickle.dumps(molecule), 1: pickle.dumps(surface), "length": b"2"})
    return path


def test_fairchem_pickles(tmp_path):
    path = fairchem_graphs(tmp_path)
    assert recognised(path) == "fairchem"
    facts, parsed, rejected = convert(path, TRUST)
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/A")
    assert rejected == {"periodic": 1}
    assert smiles_of(parsed[1]) == "CCO" and parsed[1].y == (-1.5,)
    assert np.array_equal(parsed[1].forces[0], np.arange(27.0).reshape(9, 3))
    assert parsed[1].origin == Origin.BONDS_PERCEIVED


def ase_row(mol, **known):
    def array(values):
        values = np.asarray(values)
        return {"__ndarray__": [values.shape, str(values.dtype), values.ravel().tolist()]}

    row = {
        "numbers": array(numbers(mol)),
        "positions": array(positions(mol)[0]),
        "cell": array(np.zeros((3, 3))),
        "pbc": array([False] * 3),
        "energy": -1.5,
        "forces": array(np.ones((mol.GetNumAtoms(), 3))),
        "data": {},
        **known,
    }
    return zlib.compress(json.dumps(row).encode())


def test_fairchem_rows_of_ase_need_no_trust(tmp_path):
    path = tmp_path / "omol.aselmdb"
    records = {
        1: ase_row(embedded("CCO")),
        2: ase_row(embedded("CC(=O)[O-]"), data={"charge": -1, "spin": 1}),
        3: ase_row(embedded("C"), pbc=[True, True, False]),
        4: ase_row(embedded("CC")),
        5: zlib.compress(b"{"),
        "nextid": zlib.compress(b"6"),
        "deleted_ids": zlib.compress(b"[4]"),
    }
    write_lmdb(path, records)
    assert recognised(path) == "fairchem"
    facts, parsed, rejected = convert(path)
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/A")
    assert {line: smiles_of(one) for line, one in parsed.items()} == {1: "CCO", 2: "CC(=O)[O-]"}
    assert rejected == {"periodic": 1, "cannot be parsed": 1}


@pytest.mark.parametrize("format", ["unimol", "fairchem"])
def test_files_that_are_no_lmdb(tmp_path, format):
    path = tmp_path / "a.lmdb"
    path.write_bytes(b"nothing of the kind" * 1000)
    assert recognised(path) is None
    with pytest.raises(MsdeError, match="cannot be read as LMDB"):
        get_reader(format, TRUST).facts([path])


# PyTorch Geometric


def graph(mol, **fields):
    ends = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
    edge_index = torch.tensor(np.concatenate([ends, ends[:, ::-1]]).T.copy())
    kinds = [str(bond.GetBondType()) for bond in mol.GetBonds()] * 2
    order = ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"]
    one_hot = torch.nn.functional.one_hot(torch.tensor([order.index(k) for k in kinds]), 4)
    return Data(
        z=torch.tensor(numbers(mol)),
        pos=torch.tensor(positions(mol)[0], dtype=torch.float32),
        edge_index=edge_index,
        edge_attr=one_hot.float(),
        **fields,
    )


def qm9_graphs(folder, **changes):
    shuffled = []
    for place, smiles in enumerate(SMILES):
        mol = embedded(smiles)
        order = np.random.default_rng(place).permutation(mol.GetNumAtoms()).tolist()
        fields = {"smiles": Chem.MolToSmiles(mol), "name": f"gdb_{place}"}
        y = torch.arange(19.0)[None] + place
        shuffled.append(graph(Chem.RenumberAtoms(mol, order), y=y, **fields))
    InMemoryDataset.save(shuffled, folder / "data_v3.pt")
    return folder / "data_v3.pt"


def test_pyg_with_smiles(tmp_path):
    path = qm9_graphs(tmp_path)
    assert recognised(path) == "pyg"
    facts, parsed, rejected = convert(path, TRUST)
    assert not rejected
    assert (facts.labels[0], facts.labels[-1]) == (Label("mu", "D"), Label("C", "GHz"))
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]
    assert parsed[3].y[:2] == (2, 3)
    assert all(one.origin == Origin.SOURCE for one in parsed.values())


@pytest.mark.parametrize("lacking", ["smiles", "smiles edge_attr", "smiles edge_attr edge_index"])
def test_pyg_with_less(tmp_path, lacking):
    graphs = [graph(embedded(smiles), y=torch.tensor([1.5])) for smiles in SMILES[:4]]
    for one in graphs:
        for name in lacking.split()[1:]:
            del one[name]
    data, slices = InMemoryDataset.collate(graphs)
    torch.save((data, slices), tmp_path / "a.pt")
    facts, parsed, rejected = convert(tmp_path / "a.pt", TRUST)
    assert facts.labels == (Label("y"),) and not rejected
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES[:4]]
    perceived = "edge_attr" in lacking
    expected = Origin.BONDS_PERCEIVED if perceived else Origin.SOURCE
    assert {one.origin for one in parsed.values()} == {expected}


def test_pyg_with_codes_of_heavy_atoms(tmp_path):
    graphs = []
    for smiles in [*SMILES, "c1cc[nH]c1"]:
        mol = Chem.RemoveHs(embedded(smiles))
        record = record_from_mol(mol, 1)
        pairs = record.bond_index.astype(np.int64)
        one = Data(
            x=torch.tensor(record.x.astype(np.int64)),
            edge_index=torch.tensor(np.concatenate([pairs, pairs[:, ::-1]]).T.copy()),
            edge_attr=torch.tensor(np.tile(record.bond_attr, (2, 1)).astype(np.int64)),
            positions=torch.tensor(positions(mol)[0], dtype=torch.float32),
        )
        graphs.append(one)
    data, slices = InMemoryDataset.collate(graphs)
    torch.save((data, slices), tmp_path / "geometric_data_processed.pt")
    facts, parsed, rejected = convert(tmp_path / "geometric_data_processed.pt", TRUST)
    assert not rejected and facts.labels == ()
    expected = [Chem.CanonSmiles(smiles) for smiles in [*SMILES, "c1cc[nH]c1"]]
    assert [smiles_of(one) for one in parsed.values()] == expected


def test_a_file_of_torch_that_is_no_data_set(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(MsdeError, match="is not \\(data, slices\\)"):
        get_reader("pyg", TRUST).facts([tmp_path / "a.pt"])


# Pickles

UNPICKLED = []


def _listen(event, arguments):
    if event == "pickle.find_class":
        UNPICKLED.append(arguments)


sys.addaudithook(_listen)


@pytest.mark.parametrize("format", ["geom", "pyg", "unimol", "fairchem"])
def test_pickles_are_refused_without_being_loaded(tmp_path, format):
    make = {"geom": geom_pickle, "pyg": qm9_graphs, "unimol": unimol, "fairchem": fairchem_graphs}
    path, reader = make[format](tmp_path), get_reader(format)
    raw = next(get_reader(format, TRUST).read(path))
    UNPICKLED.clear()
    assert recognised(path) == format
    refusal = f"{path.name} holds Python pickles.*--trust-pickle"
    with pytest.raises(MsdeError, match=refusal):
        reader.facts([path])
    with pytest.raises(MsdeError, match=refusal):
        next(reader.read(path))
    with pytest.raises(MsdeError, match=refusal):
        reader.parse(raw)
    assert UNPICKLED == []


def test_the_audit_hook_hears_what_is_loaded(tmp_path):
    UNPICKLED.clear()
    convert(geom_pickle(tmp_path), TRUST)
    assert UNPICKLED


def test_base64_of_schnetpack_is_decoded():
    stored = {
        "energy": base64.b64encode(np.array([1.5]).tobytes()).decode(),
        "_shape_energy": [1],
        "_dtype_energy": "float64",
        "other": 3,
    }
    values = ase_reader._decode(json.dumps(stored))
    assert set(values) == {"energy", "other"}
    assert values["energy"].tolist() == [1.5]


def test_options_are_heeded_by_default():
    assert Options().hydrogens(True) and not Options().hydrogens(False)
    assert Options(keep_hydrogens=False).hydrogens(True) is False
    assert Options().chosen_labels() is None
    assert Options(label_columns=("a=eV", "b")).chosen_labels() == (Label("a", "eV"), Label("b"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_keeps_the_contract(name):
    reader = get_reader(name)
    assert isinstance(reader.keep_hydrogens, bool)
    assert all(callable(getattr(reader, part)) for part in ("recognises", "facts", "read", "parse"))
