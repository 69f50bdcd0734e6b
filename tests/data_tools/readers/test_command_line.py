"""The command line of the converter, and files of formats that are not read."""

import zipfile

import pytest

from fixtures.commands import run_here
from msde.data.shards import read_manifest
from msde.data_tools.reading import choose_format
from msde.errors import MsdeError


def run(*arguments):
    return run_here("msde.data_tools.convert", *arguments, "--conformers", 0, "--processes", 1)


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.smi").write_text("CCO\n")
    result = run("~/m.smi", "--output=~/out")
    assert result.returncode == 0, result.stderr
    assert read_manifest(tmp_path / "out")["molecules"] == 1
    assert not (tmp_path / "~").exists()


def test_one_molecule_is_no_molecules(tmp_path):
    (tmp_path / "m.smi").write_text("CCO\n")
    result = run(tmp_path / "m.smi", "--output", tmp_path / "one")
    assert f"{tmp_path / 'one'}: 1 molecule converted, 0 of 1 rejected\n" in result.stdout
    (tmp_path / "m.smi").write_text("CCO\nCC\n")
    result = run(tmp_path / "m.smi", "--output", tmp_path / "two")
    assert ": 2 molecules converted, 0 of 2 rejected\n" in result.stdout


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("m.pdb", "convert it to an SD file, as with Open Babel"),
        ("m.MOL2", "convert it to an SD file, as with Open Babel"),
        ("m.pdb.gz", "convert it to an SD file, as with Open Babel"),
        ("m.xlsx", "save the sheet as CSV"),
        ("m.what", r"give --format \(cxsmiles, "),
    ],
)
def test_formats_that_are_not_read_are_answered_with_what_to_do(tmp_path, name, advice):
    (tmp_path / name).write_text("HETATM    1  C\n")
    with pytest.raises(MsdeError, match=f"looks like no known format, it is .*; {advice}") as error:
        choose_format([tmp_path / name])
    assert ("--format" in str(error.value)) == (name == "m.what")


def test_an_excel_workbook_is_called_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.xlsx", "w") as book:  # in the order of openpyxl
        for part in ("docProps/app.xml", "xl/worksheets/sheet1.xml", "[Content_Types].xml"):
            book.writestr(part, "<x/>" * 5000)
    with pytest.raises(MsdeError, match="it is an Excel workbook or another Office document; save"):
        choose_format([tmp_path / "m.xlsx"])
