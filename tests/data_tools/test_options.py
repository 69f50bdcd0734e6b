"""Options that say how files are read: a format follows them or refuses them, in one line."""

import pytest

from fixtures.data_sets import run_tool
from fixtures.formats import FORMAT_OF, write_valid
from fixtures.pickled import qm9_graphs
from fixtures.readers import embedded, sd_record
from msde.data_tools.options import SPECIAL, TABLE, Options
from msde.data_tools.readers import get_reader
from msde.errors import MsdeError

# Values that no file can satisfy, and values that make a difference.
NOWHERE = dict.fromkeys(("energy_key", "forces_key", "smiles_column", "name_column"), "nowhere")
NOWHERE |= {"encoding": "nowhere"}
OTHER = {"charge": 1, "conformers": 3, "group_conformers": True, "delimiter": "@"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("files"))


def read(path, format, **options):
    reader = get_reader(format, Options(trust_pickle=True, **options))
    facts = reader.facts([path])
    return facts, [(raw.name, raw.y) for raw in reader.read(path)]


@pytest.mark.parametrize("option", SPECIAL)
@pytest.mark.parametrize("name", FORMAT_OF)
def test_no_option_is_ignored(files, name, option):
    format, flag = FORMAT_OF[name], f"--{option.replace('_', '-')}"
    followed = option in get_reader(format).follows
    if name == "lines.smi" and option in TABLE and option != "encoding":
        followed = False  # it is no table
    if followed and option in OTHER:
        return  # what they do has tests of its own
    with pytest.raises(MsdeError) as error:
        read(files[name], format, **{option: (NOWHERE | OTHER)[option]})
    assert ("nowhere" if followed else f"{flag} is of no use for") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FORMAT_OF)
def test_no_label_is_chosen_that_no_molecule_has(files, name):
    if name == "alanine.pickle":
        reader = get_reader("geom", Options(trust_pickle=True, label_columns=("nowhere",)))
        (raw,) = reader.read(files[name])
        assert reader.parse(raw).notes == ("no label nowhere",)
        return
    with pytest.raises(MsdeError, match="nowhere|has labels|is of no use for"):
        read(files[name], FORMAT_OF[name], label_columns=("nowhere",))


def test_conformers_are_not_asked_of_graphs_with_geometry(tmp_path):
    with pytest.raises(MsdeError, match="--conformers is of no use for .*, which has geometry"):
        read(qm9_graphs(tmp_path), "pyg", conformers=2)


def test_the_encoding_of_an_sd_file_can_be_named(tmp_path):
    path = tmp_path / "m.sdf"
    path.write_bytes(sd_record(embedded("CO"), "甲醇", gap=1.5).encode("gb18030"))
    assert read(path, "sdf", encoding="gb18030")[1] == [("甲醇", ())]


def test_the_command_ends_with_one_line_and_code_2(files, tmp_path):
    out = tmp_path / "out"
    result = run_tool("convert", files["table.csv"], "--output", out, "--forces-key", "F")
    assert (result.returncode, result.stderr.count("\n"), out.exists()) == (2, 1, False)
    assert "--forces-key is of no use for --format smiles" in result.stderr


def test_files_are_surveyed_once(files, monkeypatch):
    from msde.data_tools.readers import pyg

    loaded, load = [], pyg.load_graphs
    monkeypatch.setattr(pyg, "load_graphs", lambda path: loaded.append(path) or load(path))
    read(files["data_v3.pt"], "pyg")
    assert loaded == [files["data_v3.pt"]]
