"""Progress of a conversion, with the total where files tell it."""

import pytest

from fixtures.formats import FLAT, FORMAT_OF, write_valid
from fixtures.readers import TRUST
from msde.data_tools.convert import convert
from msde.data_tools.readers import get_reader

COUNTED = {"rows.db", "frames.npz", "rows.aselmdb", "ligands.lmdb", "s2ef.lmdb"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", FORMAT_OF)
def test_a_count_is_the_number_of_molecules_that_are_read(name, files):
    reader = get_reader(FORMAT_OF[name], TRUST)
    count = reader.count(files[name])
    assert (count is not None) == (name in COUNTED)
    assert count in (None, len(list(reader.read(files[name]))))


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("name", ["rows.db", "frames.npz", "mols.sdf"])
def test_the_total_is_said_where_it_is_known(name, limit, files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("msde.data_tools.pipeline.progress.SECONDS", 0)
    with caplog.at_level("INFO"):
        read = convert([files[name]], tmp_path / "out", options=FLAT, limit=limit)["read"]
    of_all = f" of {read}" if name in COUNTED else ""
    assert f"{read}{of_all} molecules, " in caplog.text
    assert bool(of_all) == (" of " in caplog.messages[-1].partition(";")[0])
    assert limit is None or read == limit


def test_totals_of_several_files_add_up(files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("msde.data_tools.pipeline.progress.SECONDS", 0)
    copy = tmp_path / "more.db"
    copy.write_bytes(files["rows.db"].read_bytes())
    with caplog.at_level("INFO"):
        read = convert([files["rows.db"], copy], tmp_path / "out", options=FLAT)["read"]
    assert f"{read} of {read} molecules, " in caplog.text
