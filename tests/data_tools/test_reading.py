"""Inputs as users name them: folders, patterns, lists, archives, LMDB's folders."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from fixtures.readers import SMILES, embedded, sd_record
from msde.data_tools.convert import convert
from msde.data_tools.inputs import check_inputs, expand_inputs
from msde.data_tools.reading import choose_format
from msde.errors import MsdeError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "many"
    (root / "deep").mkdir(parents=True)
    for number, smiles in enumerate(SMILES):
        place = root / "deep" if number % 2 else root
        (place / f"m{number}.sdf").write_text(sd_record(embedded(smiles), f"m{number}"))
    (root / "README.md").write_text("about these files\n")
    (root / ".hidden.sdf").write_text("no molecule")
    return root


def test_a_folder_stands_for_its_files_and_others_are_counted(folder, caplog):
    caplog.set_level("INFO")
    found = expand_inputs([folder])
    assert sorted(path.name for path in found) == [f"m{n}.sdf" for n in range(len(SMILES))]
    assert f"1 of {len(SMILES) + 1} files are of no known format, as README.md" in caplog.text
    assert choose_format(found) == "sdf"


def test_empty_files_of_a_folder_are_counted_and_not_read(folder, caplog):
    caplog.set_level("INFO")
    (folder / "_SUCCESS").touch()
    (folder / "deep/empty.sdf").touch()
    assert len(expand_inputs([folder])) == len(SMILES)
    assert f"2 of {len(SMILES) + 3} files are empty, as _SUCCESS" in caplog.text


def test_patterns_and_lists_stand_for_the_same_files(folder, tmp_path):
    everything = set(expand_inputs([folder]))
    assert set(expand_inputs([f"{folder}/**/*.sdf"])) == everything
    names = tmp_path / "files.txt"
    names.write_text("\n".join(map(str, [*everything, ""])))
    assert set(expand_inputs([f"@{names}"])) == everything
    with pytest.raises(MsdeError, match="no file is named like"):
        expand_inputs([f"{folder}/*.xyz"])
    with pytest.raises(MsdeError, match="cannot be read"):
        expand_inputs([f"@{tmp_path}/none.txt"])
    shutil.rmtree(folder / "deep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MsdeError, match="holds no file of a known format"):
        expand_inputs([tmp_path / "empty"])


def test_a_folder_converts_as_its_files_do(folder, tmp_path):
    assert convert([folder], tmp_path / "out")["converted"] == len(SMILES)


def test_an_archive_of_several_files_is_an_error_that_says_what_to_do(folder, tmp_path):
    archive = tmp_path / "m.sdf.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "many")
    with pytest.raises(MsdeError, match="holds several files.*unpack it"):
        convert([archive], tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_lists_and_names_that_cannot_be_followed_are_one_line(tmp_path):
    (tmp_path / "a.smi").write_text("CCO\n")
    listed = tmp_path / "list.txt"
    listed.write_text(f"\ufeff{tmp_path}/a.smi\n", encoding="utf-8")  # as Notepad writes it
    assert expand_inputs([f"@{listed}"]) == [tmp_path / "a.smi"]
    listed.write_text(f"@{listed}\n")
    with pytest.raises(MsdeError, match="list .*list.txt names itself"):
        expand_inputs([f"@{listed}"])
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mol\xe9.smi"))
    latin.write_text("CCO\n")
    with pytest.raises(MsdeError, match="the name of .*mol..smi is not in UTF-8"):
        check_inputs([latin])
