import gzip

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from fixtures.readers import (
    ALL_HYDROGENS,
    SMILES,
    convert,
    embedded,
    numbers,
    positions,
    real,
    sd_record,
    smiles_of,
)
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert as convert_files
from msde.data_tools.models.finetuning import task_shards
from msde.data_tools.parsing.chemistry import LACKS_HYDROGENS
from msde.data_tools.readers import Label, Options, get_reader
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task
from msde.errors import MsdeError


def test_radicals_of_wrong_bonds_are_rejected():
    path, reader = real("pretrain/dft8k.sdf.gz"), get_reader("sdf")
    raws = [raw for raw in reader.read(path) if "M  RAD" in raw.payload.blocks[0].text]
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
def test_records_do_not_depend_on_the_size_of_reads(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("msde.data_tools.parsing.sd_files.CHUNK", chunk)
    path = tmp_path / "a.sdf"
    path.write_text("a\nb\n$$$$\n\nc\n$$$$ more\n\n$$$$\nlast\nx\n$$$$")
    raws = list(get_reader("sdf").read(path))
    found = [(raw.line, raw.name, raw.payload.blocks[0].text) for raw in raws]
    assert found == [(1, "a", "a\nb"), (4, "", "\nc"), (7, "", ""), (9, "last", "last\nx")]


def test_a_record_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("msde.data_tools.parsing.sd_files.MAX_RECORD", 1000)
    path = tmp_path / "a.sdf"
    path.write_text("x\n" * 1000)
    with pytest.raises(MsdeError, match="the record that begins in line 1 does not end"):
        get_reader("sdf").facts([path])


def in_v3000(record):
    mol = Chem.MolFromMolBlock(record, removeHs=False)
    return f"{Chem.MolToV3KMolBlock(mol)}$$$$\n"


@pytest.mark.parametrize("v3000", [False, True])
def test_neighbours_become_conformers_on_request(tmp_path, v3000):
    left, right = embedded("C[C@H](N)C(=O)O", 3), embedded("C[C@@H](N)C(=O)O")
    blocks = [sd_record(Chem.Mol(left, confId=c.GetId()), "ala") for c in left.GetConformers()]
    records = [*blocks[:2], sd_record(right, "ala"), blocks[2], sd_record(embedded("CO"), "ala")]
    records += [sd_record(embedded("CO"), "")] * 2
    if v3000:
        records = [in_v3000(record) for record in records]
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


def test_geometries_that_lack_hydrogens_are_rejected(tmp_path):
    mol = embedded("CCO")
    some = Chem.RWMol(mol)
    some.RemoveAtom(mol.GetNumAtoms() - 1)
    none = Chem.RemoveHs(mol)
    path = tmp_path / "a.sdf"
    path.write_text(sd_record(mol) + sd_record(some.GetMol()) + sd_record(none))
    reason = LACKS_HYDROGENS
    assert convert(path)[2] == {reason: 1}
    assert convert(path, ALL_HYDROGENS)[2] == {reason: 2}


def test_a_geometry_that_lacks_the_hydrogens_of_carbon_alone_is_taken_without_hydrogens(tmp_path):
    """As docking programs write it."""
    mol = Chem.RWMol(embedded("OCCN"))
    on_carbon = mol.GetSubstructMatches(Chem.MolFromSmarts("[#1]-[#6]"))
    for place in sorted((hydrogen for hydrogen, _ in on_carbon), reverse=True):
        mol.RemoveAtom(place)
    path = tmp_path / "a.sdf"
    path.write_text(sd_record(mol.GetMol()))
    _, parsed, rejected = convert(path)
    assert not rejected and [smiles_of(one) for one in parsed.values()] == ["NCCO"]
    assert convert(path, ALL_HYDROGENS)[2] == {LACKS_HYDROGENS: 1}


def test_stereo_comes_from_coordinates(tmp_path):
    path = tmp_path / "a.sdf"
    path.write_text("".join(sd_record(embedded(smiles)) for smiles in SMILES))
    _, parsed, _ = convert(path)
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]


def test_labels_that_differ_between_conformers_have_a_note(tmp_path):
    mol = embedded("CCO", 2)
    mols = [Chem.Mol(mol, confId=conformer.GetId()) for conformer in mol.GetConformers()]
    for energies, notes in (((1, 1), ()), ((1, 2), ("labels of its conformers differ",))):
        text = "".join(sd_record(m, "a", E=e) for m, e in zip(mols, energies, strict=True))
        (tmp_path / "m.sdf").write_text(text)
        parsed = convert(tmp_path / "m.sdf", Options(group_conformers=True))[1][1]
        assert parsed.mol.GetNumConformers() == 2 and parsed.y == (1,)
        assert tuple(note.partition(":")[0] for note in parsed.notes) == notes


def test_a_property_that_stands_twice_in_a_record_has_a_note(tmp_path):
    once, twice = sd_record(embedded("CO"), gap=1), sd_record(embedded("CO"), gap=2)
    twice = twice.replace("$$$$", "> <gap>\n3\n\n$$$$")
    (tmp_path / "m.sdf").write_text(once + twice)
    parsed = list(convert(tmp_path / "m.sdf")[1].values())
    assert [one.y for one in parsed] == [(1,), (2,)]
    note = "property gap stands there 2 times, of which the first is kept"
    assert [one.notes for one in parsed] == [(), (note,)]


def test_properties_by_number_are_read_and_units_in_names_are_known(tmp_path):
    record = sd_record(embedded("CO"), **{"gap (eV)": 27.211386245988, "id": 2**53 + 1})
    record = record.replace("$$$$", "> DT12\n2.5\n\n$$$$")
    (tmp_path / "m.sdf").write_text(record)
    facts, parsed, _ = convert(tmp_path / "m.sdf")
    assert parsed[1].y == (27.211386245988, 2.5)
    assert facts.labels == (Label("gap (eV)", "eV"), Label("DT12"))
    assert facts.left_out == (("id", f"text, as '{2**53 + 1}'"),)
    parsed = convert(tmp_path / "m.sdf", Options(label_columns=("gap (eV)=Ha",)))[1]
    assert parsed[1].y == pytest.approx((1.0,))


def test_text_in_a_label_rejects_the_record_and_ends_a_fine_tuning(tmp_path):
    """With its line, as in a table."""
    records = [sd_record(embedded(smiles), pIC50=y) for smiles, y in (("CO", "6.1"), ("CC", ">5"))]
    path, line = tmp_path / "m.sdf", records[0].count("\n") + 1
    path.write_text("".join(records))
    _, parsed, rejected = convert(path, Options(label_columns=("pIC50",)))
    assert [one.y for one in parsed.values()] == [(6.1,)]
    assert rejected == {"label pIC50 is not a number": 1}
    task = get_task("custom", ("pIC50",), "rmse")
    with pytest.raises(MsdeError, match=f"m.sdf, line {line}: label pIC50 is not a number: '>5'"):
        task_shards(task, path, tmp_path / "cache", make_settings(task, ()))


def test_drawings_are_rejected_with_what_to_do(tmp_path):
    mol = Chem.MolFromSmiles("CCO")
    Chem.rdDepictor.Compute2DCoords(mol)
    (tmp_path / "m.sdf").write_text(sd_record(mol))
    (reason,) = convert(tmp_path / "m.sdf")[2]
    assert reason.startswith("no 3D conformer") and "SMILES" in reason
    counts = convert_files([tmp_path / "m.sdf"], tmp_path / "out", options=Options(conformers=0))
    assert counts["converted"] == 1  # as the reason says


def test_isomers_of_a_hundred_atoms_are_no_conformers_of_each_other(tmp_path):
    chain = "C" * 101
    one, other = (Chem.MolFromSmiles(f"{chain}{end}") for end in ("C(O)C", "CCO"))
    for mol in (one, other):
        mol.SetProp("_Name", "chain")
        rdDepictor.Compute2DCoords(mol)
        mol.GetConformer().Set3D(True)
    blocks = (f"{Chem.MolToMolBlock(mol)}$$$$\n" for mol in (one, other))
    (tmp_path / "m.sdf").write_text("".join(blocks))
    options = Options(group_conformers=True)
    assert len(list(get_reader("sdf", options).read(tmp_path / "m.sdf"))) == 2


def test_properties_that_number_the_molecules_are_no_labels(tmp_path):
    record = sd_record(embedded("CO"), PUBCHEM_COMPOUND_CID=887, gap=1.5)
    (tmp_path / "m.sdf").write_text(record)
    facts, parsed, _ = convert(tmp_path / "m.sdf")
    assert facts.labels == (Label("gap"),) and parsed[1].y == (1.5,)
    assert ("PUBCHEM_COMPOUND_CID", "numbers or names the molecules") in facts.left_out


def test_drawings_get_the_hydrogens_that_are_kept(tmp_path):
    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    (tmp_path / "m.sdf").write_text(f"{Chem.MolToMolBlock(mol)}$$$$\n")
    for keep, num_atoms in ((True, 9), (False, 3)):
        output = tmp_path / str(keep)
        convert_files(
            [tmp_path / "m.sdf"], output, options=Options(conformers=0, keep_hydrogens=keep)
        )
        assert [len(record.z) for record in ShardDataset(output).records()] == [num_atoms]


def test_mol_blocks_without_a_separator_are_rejected_and_mixtures_have_a_note(tmp_path):
    block = Chem.MolToMolBlock(embedded("CO"))
    (tmp_path / "m.sdf").write_text(block * 3)
    with pytest.raises(MoleculeError, match="a second molecule begins before"):
        reader = get_reader("sdf")
        reader.parse(next(reader.read(tmp_path / "m.sdf")))
    mol = embedded("C[C@H](N)C(=O)O")
    mol = Chem.RWMol(mol)
    mol.SetStereoGroups([Chem.CreateStereoGroup(Chem.StereoGroupType.STEREO_AND, mol, [1])])
    (tmp_path / "r.sdf").write_text(f"{Chem.MolToV3KMolBlock(mol)}$$$$\n")
    reader = get_reader("sdf")
    (note,) = reader.parse(next(reader.read(tmp_path / "r.sdf"))).notes
    assert note.startswith("a mixture of both stereoisomers (racemic) at atom 1")
