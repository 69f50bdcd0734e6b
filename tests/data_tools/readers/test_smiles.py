import numpy as np
import pytest

from fixtures.readers import convert, positions, real, recognised
from msde.chem.record import Origin, record_from
from msde.data_tools.readers import Label, Options, get_reader
from msde.errors import MsdeError


def test_a_table_without_header_is_read():
    facts, parsed, rejected = convert(
        real("smiles/pubchem_100k.tsv.gz"), Options(conformers=0), limit=500
    )
    assert facts.labels == () and len(parsed) == 500 and not rejected
    raw = next(get_reader("smiles").read(real("smiles/pubchem_100k.tsv.gz")))
    assert raw.payload == "CCOC(=O)c1cc(-c2ccccn2)c(=O)n2ccccc12"


def test_conformers_depend_on_the_molecule_alone(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("smiles name\nCCO ethanol\nCCCO propanol\nC.C(\n")
    _, parsed, rejected = convert(path, Options(conformers=4))
    assert rejected == {"cannot be parsed": 1}
    assert [one.mol.GetNumConformers() for one in parsed.values()] == [4, 4]
    assert all(one.origin == Origin.CONFORMERS_MADE for one in parsed.values())
    again = convert(path, Options(conformers=4))[1]
    assert np.array_equal(positions(parsed[3].mol), positions(again[3].mol))
    single = convert(path)[1][3].mol
    (tmp_path / "b.smi").write_text("CCCO\n")
    moved = convert(tmp_path / "b.smi")[1][1].mol
    assert np.array_equal(positions(single), positions(moved))
    flat = convert(path, Options(conformers=0, keep_hydrogens=True))[1][2]
    assert flat.origin == Origin.NO_GEOMETRY
    assert (flat.mol.GetNumConformers(), flat.mol.GetNumAtoms()) == (0, 9)


@pytest.mark.parametrize("keep_hydrogens", [False, True])
def test_a_file_has_the_conformers_of_a_list(tmp_path, keep_hydrogens):
    """So fine-tuning on a file and prediction from Python see the same geometry."""
    path = tmp_path / "a.smi"
    path.write_text("CC(C)CCO\n")
    mol = convert(path, Options(keep_hydrogens=keep_hydrogens))[1][1].mol
    listed = record_from("CC(C)CCO", topology_only=False, keep_hydrogens=keep_hydrogens)
    found = positions(mol)[0]
    assert found - found.mean(0) == pytest.approx(listed.pos[0], abs=1e-5)


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
def test_a_missing_column_is_an_error(tmp_path, wanted):
    path = tmp_path / "t.csv"
    path.write_text("smiles,gap\nC,1\n")
    options = Options(**{wanted: ("none",) if wanted == "label_columns" else "none"})
    with pytest.raises(MsdeError, match="no column 'none'"):
        get_reader("smiles", options).facts([path])


def test_tables_with_different_labels_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("smiles,gap\nC,1\n")
    (tmp_path / "b.csv").write_text("smiles,mu\nC,1\n")
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(MsdeError, match="--label-columns"):
        get_reader("smiles").facts(paths)
    assert get_reader("smiles", Options(label_columns=())).facts(paths).labels == ()


def test_a_molecule_too_large_to_embed_is_rejected(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("C" * 1100 + "\n")
    assert convert(path, Options(max_atoms=2000))[2] == {"more than 1024 atoms": 1}


def test_a_first_smiles_that_is_broken_is_one_reject_and_no_other_format(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("C1CC a\nCCO b\n")
    assert recognised(path) == "smiles"
    assert convert(path, Options(conformers=0))[2] == {"cannot be parsed": 1}
    (tmp_path / "a.txt").write_text("Dear colleague,\nCCO\n")
    assert recognised(tmp_path / "a.txt") is None
