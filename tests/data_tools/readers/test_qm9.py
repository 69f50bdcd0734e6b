import os

import pytest

from fixtures.readers import SMILES, convert, embedded, recognised, sd_record
from msde.data_tools.convert import convert as convert_files
from msde.data_tools.readers import Label, Options, get_reader, qm9
from msde.errors import MsdeError


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


def test_geometry_and_table_are_joined(tmp_path):
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


def test_uncharacterized_molecules_are_rejected(tmp_path):
    path = gdb9(tmp_path)
    text = "uncharacterized molecules\n=====\n  Index  SMILES\n      2  C  N\n      3  O  O\n"
    (tmp_path / "uncharacterized.txt").write_text(text)
    facts, parsed, rejected = convert(path)
    assert facts.notes == ("2 molecules of uncharacterized.txt are rejected",)
    assert rejected == {"listed in uncharacterized.txt": 2, "wrong label alignment": 1}
    (tmp_path / "gdb9.sdf.csv").unlink()
    with pytest.raises(MsdeError, match="gdb9.sdf.csv is not beside"):
        get_reader("qm9").facts([path])


def test_a_conversion_does_not_go_on_after_a_file_beside_it_has_changed(tmp_path):
    path, out, table = gdb9(tmp_path), tmp_path / "out", tmp_path / "gdb9.sdf.csv"
    excluded = tmp_path / "uncharacterized.txt"
    excluded.write_text("2 C N\n")
    with pytest.raises(MsdeError, match="2 of 5 molecules were rejected"):
        convert_files([path], out, max_rejects=0)
    for other, old, new in ((table, "gdb_40,", "gdb_4,"), (excluded, "2", "5")):
        text, times = other.read_text(), other.stat()
        other.write_text(text.replace(old, new))
        with pytest.raises(MsdeError, match="unfinished conversion of something else"):
            convert_files([path], out)
        other.write_text(text)
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert convert_files([path], out)["rejected"] == 2


def test_values_are_converted_to_the_unit_of_the_user(tmp_path):
    path = gdb9(tmp_path)
    facts, parsed, _ = convert(path, Options(label_columns=("gap=eV", "mu", "alpha=A^3")))
    assert facts.labels == (Label("gap", "eV"), Label("mu", "D"), Label("alpha", "A^3"))
    y = next(iter(parsed.values())).y
    assert y == (pytest.approx(8 * 27.211386246), 4, pytest.approx(5 * 0.148184711))
    assert "gap is converted from Ha to eV" in facts.notes
    with pytest.raises(MsdeError, match="gap in Ha, which cannot be converted to 'D'"):
        convert(path, Options(label_columns=("gap=D",)))
