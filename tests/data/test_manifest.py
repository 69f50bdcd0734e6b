"""The manifest of a data set: a change in it, or in a file that it lists, is an error."""

import json
import shutil

import pytest

from fixtures.data_sets import write_data_set
from msde.data import manifest
from msde.data.shards import LISTS
from msde.data_tools.convert import convert
from msde.data_tools.merge import merge
from msde.data_tools.reshard import reshard
from msde.data_tools.verify import verify
from msde.errors import DataDamaged, MsdeError
from msde.files import sealed

TABLE = "smiles,gap [eV],caf\N{LATIN SMALL LETTER E WITH ACUTE}\n" + "".join(
    f"{smiles},{n}.5,{n}\n"
    for n, smiles in enumerate(["CCO", "CC(C)O", "nonsense", "[2H]CO", "*C"])
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    (folder / "table.csv").write_text(TABLE, encoding="utf-8")
    convert([folder / "table.csv"], folder / "data", "smiles")
    assert (folder / "data/rejects.jsonl").stat().st_size
    assert (folder / "data/notes.jsonl").stat().st_size
    return folder / "data"


def problems(data):
    """Return what `verify` prints, which may be the error that ends it."""
    try:
        return list(verify(data))
    except MsdeError as error:
        return [str(error)]


def test_any_flipped_bit_of_a_manifest_is_told_when_it_is_read(converted, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    whole = (converted / "manifest.json").read_bytes()
    assert b"\\u00e9" in whole  # whose hexadecimal digits could be capitals
    for place in range(len(whole)):
        bit = 1 << place % 8 if whole[place] != ord("e") else 0x20
        changed = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        (folder / "manifest.json").write_bytes(changed)
        with pytest.raises(MsdeError, match=r"manifest\.json") as error:
            manifest.read_manifest(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"more": 1}, "'more' is not known to this release"),
        ({"atoms": "7"}, 'atoms is "7", expected a number of at least 0'),
        ({"atoms": True}, "atoms is true, expected"),
        ({"labels": [{"name": "gap"}]}, r"labels\[0\] lacks unit"),
        ({"source": []}, r"source is \[\], expected an object"),
        ({"shards": [{}]}, r"shards\[0\] lacks atoms"),
        ({"shards": 3}, "shards is 3, expected a list"),
        ({"digest": None}, "digest is null, expected a SHA-256"),
        ({"fields": {"taken": [["SMILES"]], "left_out": {}}}, r"taken\[0\] is .*, expected a pair"),
    ],
)
def test_a_manifest_that_is_not_of_the_schema_is_an_error(records, tmp_path, changes, said):
    path = write_data_set(tmp_path / "data", records) / "manifest.json"
    path.write_text(sealed(json.loads(path.read_text()) | changes))
    with pytest.raises(DataDamaged, match=rf"manifest\.json: .*{said}") as error:
        manifest.read_manifest(path.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["shards", "labels", "atoms", "forces_unit", "digest", "format"])
def test_a_missing_key_is_named(records, tmp_path, key):
    path = write_data_set(tmp_path / "data", records) / "manifest.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(sealed(values))
    with pytest.raises(DataDamaged, match=f"it lacks {key}"):
        manifest.read_manifest(path.parent)


def test_data_sets_of_earlier_releases_load_with_a_warning(records, tmp_path, caplog):
    path = write_data_set(tmp_path / "data", records) / "manifest.json"
    values = json.loads(path.read_text())
    del values["sha256"], values["lists"]
    path.write_text(json.dumps(values, indent=1) + "\n")
    assert manifest.read_manifest(path.parent) == manifest.read_manifest(path.parent) == values
    (said,) = caplog.messages
    assert said.startswith(str(path)) and "cannot be checked" in said
    assert problems(path.parent) == []


def test_lists_that_are_gone_or_new_are_told(converted, tmp_path):
    data = shutil.copytree(converted, tmp_path / "data")
    (data / "rejects.jsonl").unlink()
    assert problems(data) == [f"{data / 'rejects.jsonl'} has no file"]
    values = json.loads((data / "manifest.json").read_text())
    del values["lists"]["rejects.jsonl"]
    (data / "rejects.jsonl").write_text("{}\n")
    (data / "manifest.json").write_text(sealed(values))
    assert problems(data) == [f"{data / 'rejects.jsonl'} is not in the manifest"]


def test_damaged_lists_are_not_merged(converted, tmp_path):
    data = shutil.copytree(converted, tmp_path / "data")
    (data / "notes.jsonl").write_text("")
    with pytest.raises(DataDamaged, match=r"notes\.jsonl is damaged"):
        merge([data], tmp_path / "merged")
    assert not (tmp_path / "merged/manifest.json").exists()


def test_the_digest_of_a_data_set_is_that_of_its_shards(converted):
    """Checkpoints keep it, so it must not change with the rest of the manifest."""
    values = json.loads((converted / "manifest.json").read_text())
    assert values["digest"] == manifest.digest_of(values["shards"])


def test_resharding_a_data_set_of_an_earlier_release_writes_its_manifest_anew(
    converted, tmp_path, caplog
):
    data = shutil.copytree(converted, tmp_path / "data")
    values = json.loads((data / "manifest.json").read_text())
    del values["sha256"], values["lists"]
    (data / "manifest.json").write_text(json.dumps(values, indent=1) + "\n")
    reshard(data, tmp_path / "anew")
    caplog.clear()
    anew = manifest.read_manifest(tmp_path / "anew")
    assert anew["digest"] == values["digest"] and set(anew["lists"]) == set(LISTS)
    assert problems(tmp_path / "anew") == [] and not caplog.messages


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": []}', "\0"])
def test_other_texts_are_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(MsdeError, match=r"manifest\.json") as error:
        manifest.read_manifest(tmp_path)
    assert "\n" not in str(error.value)
