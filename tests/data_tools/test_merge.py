import dataclasses

import numpy as np
import pytest

from fixtures.data_sets import molecules, run_tool, write_data_set
from msde.chem.vocabulary import ATOM_VOCABULARY
from msde.data.shards import ShardDataset
from msde.data_tools.merge import merge
from msde.data_tools.pipeline import packing
from msde.data_tools.verify import verify
from msde.errors import InUse, MsdeError


def labelled(records, *values, shift=0):
    y = np.array(values, "<f8")
    return [dataclasses.replace(r, uid=r.uid ^ shift, y=y + n) for n, r in enumerate(records)]


def test_merged_data_sets_hold_all_molecules(records, tmp_path):
    first = write_data_set(
        tmp_path / "a", labelled(records[:4], 1, 2), [("gap", "eV"), ("mu", "D")]
    )
    second = write_data_set(
        tmp_path / "b", labelled(records[4:], 4, 3), [("mu", "D"), ("gap", "eV")]
    )
    assert merge([first, second], tmp_path / "out") == len(records)
    merged = list(molecules(tmp_path / "out"))
    assert [m.uid for m in merged] == [r.uid for r in records]
    assert merged[5].y.tolist() == [4, 5]  # gap, mu as in the first
    assert list(verify(tmp_path / "out")) == []


def test_labels_that_differ_are_an_error_or_united(records, tmp_path):
    first = write_data_set(tmp_path / "a", labelled(records[:4], 1), [("gap", "eV")])
    second = write_data_set(tmp_path / "b", labelled(records[4:], 4), [("mu", "D")])
    with pytest.raises(MsdeError, match=r"differ in their labels \(gap, mu\); give --labels union"):
        merge([first, second], tmp_path / "out")
    merge([first, second], tmp_path / "out", labels="union")
    merged = list(molecules(tmp_path / "out"))
    assert np.array_equal(merged[0].y, [1, np.nan], equal_nan=True)
    assert np.array_equal(merged[-1].y, [np.nan, 4 + 5], equal_nan=True)
    third = write_data_set(tmp_path / "c", labelled(records[4:], 4), [("gap", "Ha")])
    with pytest.raises(MsdeError, match="label gap is in 'eV', but in 'Ha'"):
        merge([first, third], tmp_path / "other", labels="union")


def test_repeated_molecules_are_an_error_or_skipped(records, tmp_path):
    first = write_data_set(tmp_path / "a", records[:6])
    second = write_data_set(tmp_path / "b", records[4:])
    with pytest.raises(MsdeError, match="2 molecules have the id of another one"):
        merge([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert merge([first, second], tmp_path / "out", skip_duplicates=True) == len(records)
    assert [m.uid for m in molecules(tmp_path / "out")] == [r.uid for r in records]


def test_skipped_duplicates_are_counted(records, tmp_path):
    first = write_data_set(tmp_path / "a", records[:6])
    second = write_data_set(tmp_path / "b", records[4:])
    out = tmp_path / "out"
    found = run_tool("merge", first, second, "--output", out, "--skip-duplicates")
    assert "2 molecules left out: duplicates of earlier ones" in found.stdout, found.stderr
    assert ShardDataset(out).manifest["source"]["duplicates"] == {"molecules": 2}


def test_different_molecules_of_files_with_one_name_are_never_skipped(records, tmp_path):
    first = write_data_set(tmp_path / "a", records[:6])
    other = [records[4], dataclasses.replace(records[6], uid=records[5].uid)]
    second = write_data_set(tmp_path / "b", other)
    for skip in (False, True):
        with pytest.raises(MsdeError, match="^1 molecules have the id of a different .*rename"):
            merge([first, second], tmp_path / "out", skip_duplicates=skip)
    assert not (tmp_path / "out").exists()


def test_molecules_that_cannot_be_compared_are_kept_and_counted(records, tmp_path):
    x = records[0].x.copy()
    x[0, 3] = len(ATOM_VOCABULARY["formal_charge"]) - 1  # misc
    whole = write_data_set(tmp_path / "a", [dataclasses.replace(records[0], x=x), *records[1:]])
    task = write_data_set(tmp_path / "task", records[2:4])
    found = run_tool("merge", whole, "--output", tmp_path / "out", "--without", task)
    assert "1 molecules kept without comparison" in found.stdout, found.stderr
    without = ShardDataset(tmp_path / "out").manifest["source"]["without"]
    assert (without["molecules"], without["not_compared"]) == (2, 1)


def test_molecules_of_another_data_set_are_left_out(records, tmp_path):
    whole = write_data_set(tmp_path / "whole", records)
    shifted = [dataclasses.replace(r, uid=r.uid ^ 1) for r in records[2:4]]  # graphs count, not ids
    task = write_data_set(tmp_path / "task", shifted)
    found = run_tool("merge", whole, "--output", tmp_path / "out", "--without", task)
    assert found.returncode == 0, found.stderr
    assert "2 molecules left out" in found.stdout
    assert [m.uid for m in molecules(tmp_path / "out")] == [
        r.uid for r in records[:2] + records[4:]
    ]
    assert list(verify(tmp_path / "out")) == []
    with pytest.raises(MsdeError, match="no molecule is left"):
        merge([task], tmp_path / "nothing", without=[whole])


def test_duplicates_with_other_values_are_counted(records, tmp_path, caplog):
    first = write_data_set(tmp_path / "a", labelled(records[:4], 1), [("gap", "eV")])
    again = write_data_set(tmp_path / "b", labelled(records[:4], 1), [("gap", "eV")])
    other = write_data_set(tmp_path / "c", labelled(records[:4], 2), [("mu", "D")])
    merge([first, again], tmp_path / "same", skip_duplicates=True)
    assert not caplog.messages
    merge([first, other], tmp_path / "out", labels="union", skip_duplicates=True)
    assert "4 of the repeated molecules have other labels" in caplog.text


def test_a_second_process_does_not_write_to_the_same_folder(records, tmp_path, monkeypatch):
    monkeypatch.setattr("msde.files.LOCK_SECONDS", 0.1)
    source = write_data_set(tmp_path / "a", records)
    write = packing.write_manifest

    def meanwhile(*given):
        with pytest.raises(InUse, match="another process writes to .*out"):
            merge([source], tmp_path / "out")
        write(*given)

    monkeypatch.setattr(packing, "write_manifest", meanwhile)
    assert merge([source], tmp_path / "out") == len(records)
    assert list(verify(tmp_path / "out")) == [] and not list((tmp_path / "out").glob(".*"))
