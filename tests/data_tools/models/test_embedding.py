"""Embeddings of files: a row for each molecule of the input, with name, labels and reason."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from rdkit import Chem

from fixtures.models import make_small
from msde.checkpoints.weights import find_weights, save_weights
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.models.embedding import embed_file
from msde.data_tools.options import Options
from msde.errors import MsdeError

TABLE = "smiles;id;logS\nCCO;a;-0,5\nC C;b;1\nc1ccccc1;c;\n;d;2\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with its best weights."""
    path = tmp_path_factory.mktemp("run")
    model = make_small("paper")
    save_weights(model.state_dict(), model.config, path / "best")
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    return path


def test_an_archive_of_arrays_has_a_row_for_each_molecule(run, table, tmp_path, capsys):
    output = tmp_path / "h.npz"
    embed_file(run, table, output, view="2d")
    found = np.load(output)
    assert found["name"].tolist() == ["a", "b", "c", "d"]
    assert found["line"].tolist() == [2, 3, 4, 5]
    assert found["label_names"].tolist() == ["logS"]
    assert np.array_equal(found["y"][:, 0], [-0.5, 1, np.nan, 2], equal_nan=True)
    assert np.isfinite(found["h_2d"]).all(1).tolist() == [True, False, True, False]
    assert found["reason"].tolist()[::2] == ["", ""]
    assert "white space" in found["reason"][1] and found["reason"][3] == "no SMILES"
    printed = capsys.readouterr().out
    assert f"weights of {run / 'best'}" in printed and "2 of 4 molecules" in printed


def test_a_table_has_the_same_rows(run, table, tmp_path):
    embed_file(run, table, tmp_path / "h.npz", view="2d")
    embed_file(run, table, tmp_path / "h.csv", view="2d")
    h = np.load(tmp_path / "h.npz")["h_2d"]
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["logS"] for row in rows] == ["-0.5", "1.0", "", "2.0"]
    assert np.allclose(float(rows[0]["h_2d_3"]), h[0, 3]) and rows[1]["h_2d_3"] == ""
    with pytest.raises(MsdeError, match="--level node .*npz"):
        embed_file(run, table, tmp_path / "h.csv", level="node")


SMILES = "smiles\nCCO\nC1#CC#C1\nC C\nC/C=C/C=N\nc1ccccc1[N+](=O)[O-]\n"  # no. 2 has no conformer


def test_conformers_are_made_once_for_a_file_and_its_options(run, tmp_path, capsys, monkeypatch):
    source, made = tmp_path / "c.csv", "msde.data_tools.readers.smiles.embed_conformers"
    source.write_text(SMILES)
    said = []

    def embed(name, **options):
        embed_file(run, source, tmp_path / name, view="3d", **options)
        said.append(capsys.readouterr().out.splitlines()[-3])
        return np.load(tmp_path / name)["h_3d"]

    first = embed("first.npz")
    with monkeypatch.context() as patch:
        patch.setattr(made, None)
        patch.setattr("msde.chem.record.embed_conformer", lambda *_: Chem.MolFromSmiles(""))
        again = embed("again.npz")
    assert np.array_equal(first, again, equal_nan=True)
    assert np.isfinite(first).all(1).tolist() == [True, False, False, True, True]
    embed("other.npz", options=Options(keep_hydrogens=True))
    source.write_text(SMILES.replace("CCO", "CCCO"))
    assert not np.allclose(embed("changed.npz")[0], first[0])
    counts = [line.partition(";")[0] for line in said]
    assert counts == [
        "conformers: 0 read from the cache, 3 made, 1 failed",
        "conformers: 3 read from the cache, 0 made, 1 failed",
        "conformers: 0 read from the cache, 3 made, 1 failed",
        "conformers: 0 read from the cache, 3 made, 1 failed",
    ]


def test_without_a_cache_conformers_are_made_all_the_same(run, tmp_path, monkeypatch, caplog):
    (tmp_path / "c.csv").write_text(SMILES)
    (tmp_path / "file").touch()
    monkeypatch.setattr("msde.data_tools.models.cache.user_cache", lambda: tmp_path / "file/cache")
    embed_file(run, tmp_path / "c.csv", tmp_path / "h.npz", view="3d")
    assert np.isfinite(np.load(tmp_path / "h.npz")["h_3d"][0]).all()
    assert "conformers are not kept: " in caplog.text


def test_options_of_readers_choose_columns(run, table, tmp_path):
    options = Options(name_column="logS", label_columns=())
    embed_file(run, table, tmp_path / "h.npz", view="2d", format="smiles", options=options)
    found = np.load(tmp_path / "h.npz")
    assert found["name"].tolist() == ["-0,5", "1", "", "2"] and found["y"].shape == (4, 0)


def test_shards_have_ids_and_labels(run, table, tmp_path):
    convert([table], tmp_path / "data", options=Options(conformers=0))
    embed_file(run, tmp_path / "data", tmp_path / "h.npz", view="2d")
    found = np.load(tmp_path / "h.npz")
    assert len(found["uid"]) == 2 and found["h_2d"].shape[0] == 2
    assert np.array_equal(found["y"][:, 0], [-0.5, np.nan], equal_nan=True)
    ids = [
        (record.name, f"{record.uid:016x}") for record in ShardDataset(tmp_path / "data").records()
    ]
    assert list(zip(found["name"].tolist(), found["uid"].tolist(), strict=True)) == ids
    embed_file(run, tmp_path / "data", tmp_path / "h.csv", view="2d")
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["name", "uid", "reason"] and ids[0][0] == "a"
    assert [(row["name"], row["uid"]) for row in rows] == ids


def test_a_note_of_the_reader_and_of_the_model_is_printed_once(run, tmp_path, capsys):
    (tmp_path / "m.csv").write_text("smiles\nC[C@H](F)Cl |&1:1|\n")
    embed_file(run, tmp_path / "m.csv", tmp_path / "h.npz", view="2d")
    assert capsys.readouterr().err.count("racemic") == 1


def test_tables_are_written_in_parts_and_numbers_come_back(run, tmp_path, monkeypatch):
    source = tmp_path / "t.csv"
    source.write_text("smiles,name,h_2d_0\n" + "CCO,a,1\nC,,0.1\nx,c,\n" * 3)
    embed_file(run, source, tmp_path / "h.npz")
    monkeypatch.setattr("msde.data_tools.models.embedding.ROWS", 2)
    embed_file(run, source, tmp_path / "h.csv")
    found = np.load(tmp_path / "h.npz")
    with open(tmp_path / "h.csv", newline="") as file:
        header, *rows = csv.reader(file)
    width = found["h_2d"].shape[1]
    assert header[:5] == ["name", "line", "reason", "h_2d_0", "h_2d_0"]  # a label, then a vector
    assert len(rows) == 9 and {len(row) for row in rows} == {4 + 2 * width}
    read = np.array([[float(cell or "nan") for cell in row[3:]] for row in rows])
    expected = np.column_stack([found["y"], found["h_2d"], found["h_3d"]])
    assert np.array_equal(read.astype(np.float32), expected.astype(np.float32), equal_nan=True)


def test_a_run_stands_for_its_best_weights_or_its_newest_checkpoint(run, tmp_path):
    for name in ("step-000000002", "step-000000010", "step-000000030"):
        (tmp_path / "run/checkpoints" / name).mkdir(parents=True)
    steps = tmp_path / "run/checkpoints"
    for step in ("step-000000002", "step-000000010"):
        shutil.copytree(run / "best", steps / step, dirs_exist_ok=True)
    assert find_weights(tmp_path / "run") == steps / "step-000000010"
    shutil.copytree(run / "best", tmp_path / "run/best")
    assert find_weights(tmp_path / "run") == tmp_path / "run/best"
    assert find_weights(steps / "step-000000002") == steps / "step-000000002"


def test_a_projector_has_a_point_a_row_and_a_thumbnail_for_each_molecule(run, table, tmp_path):
    folder = tmp_path / "projector"
    embed_file(run, table, tmp_path / "h.npz", projector=folder)
    rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
    assert rows[0][:3] == ["SMILES", "name", "logS"] and "weight" in rows[0]
    assert [row[:3] for row in rows[1:]] == [["CCO", "a", "-0.5"], ["c1ccccc1", "c", "nan"]]
    found, config = np.load(tmp_path / "h.npz"), (folder / "projector_config.pbtxt").read_text()
    for name in ("h_2d", "h_3d"):
        if name in found:
            points = np.loadtxt(folder / f"{name}.tsv", ndmin=2)
            assert np.allclose(points, found[name][[0, 2]], rtol=1e-4) and name in config
    sprite = np.asarray(Image.open(folder / "sprite.png").convert("L"))
    assert all((sprite[:80, 80 * i : 80 * i + 80] < 128).any() for i in range(2))
    assert list(folder.glob("events.out.tfevents.*"))
    with pytest.raises(MsdeError, match="--projector shows molecules"):
        embed_file(run, table, tmp_path / "h.npz", level="node", projector=folder)
