"""Predictions of files: a row for each molecule of the input, equal to those of fine-tuning."""

import shutil

import numpy as np
import pytest

from fixtures.downstream import finetune, read_predictions, save_checkpoint, write_table
from msde.data_tools.convert import convert
from msde.data_tools.models.embedding import embed_file
from msde.data_tools.models.prediction import predict_file
from msde.data_tools.options import Options
from msde.errors import DataDamaged, MsdeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    write_table(folder / "t.csv", 50)
    save_checkpoint(folder / "checkpoint")
    finetune(folder / "t.csv", folder / "checkpoint", folder / "tuned", seeds=2)
    return folder


def test_predictions_of_a_file_are_those_of_fine_tuning(folder, tmp_path):
    predict_file(folder / "tuned/seed-1/model", folder / "t.csv", tmp_path / "p.csv")
    rows = read_predictions(tmp_path / "p.csv")
    assert [row["name"] for row in rows] == [f"m{n}" for n in range(50)]
    found = {row["name"]: float(row["logp"]) for row in rows}
    for row in read_predictions(folder / "tuned/seed-1/predictions.csv"):
        assert found[row["name"]] == pytest.approx(float(row["logp_predicted"]), abs=1e-4)


def test_seeds_give_a_mean_and_a_deviation(folder, tmp_path):
    parts = []
    for number in (0, 1):
        model = folder / f"tuned/seed-{number}/model"
        predict_file(model, folder / "t.csv", tmp_path / "one.csv")
        rows = read_predictions(tmp_path / "one.csv")
        assert "logp_std" not in rows[0]
        parts.append([float(row["logp"]) for row in rows])
    predict_file(folder / "tuned", folder / "t.csv", tmp_path / "p.csv")
    rows = read_predictions(tmp_path / "p.csv")
    mean, std = (np.array([float(row[c]) for row in rows]) for c in ("logp", "logp_std"))
    assert np.allclose(mean, np.mean(parts, 0), atol=1e-5) and std.max() > 0
    assert np.allclose(std, np.std(parts, 0, ddof=1), atol=1e-5)


def test_a_molecule_that_cannot_be_read_has_its_row_and_reason(folder, tmp_path):
    (tmp_path / "new.csv").write_text("smiles,id,logp\nCCO,a,text\nC C,b,\n,c,\nCC(,d,\nC,e,\n")
    predict_file(folder / "tuned", tmp_path / "new.csv", tmp_path / "p.csv")
    rows = read_predictions(tmp_path / "p.csv")
    assert [row["name"] for row in rows] == list("abcde")
    assert [row["line"] for row in rows] == list("23456")
    assert [bool(row["logp"]) for row in rows] == [True, False, False, False, True]
    assert [bool(row["reason"]) for row in rows] == [False, True, True, True, False]
    assert "white space" in rows[1]["reason"] and rows[2]["reason"] == "no SMILES"


def test_a_molecule_without_a_conformer_has_a_reason_where_both_views_are_needed(
    folder, tmp_path, capsys
):
    finetune(folder / "t.csv", folder / "checkpoint", tmp_path / "both", "view=both", "epochs=1")
    (tmp_path / "new.smi").write_text("CCO a\n*C b\n")
    predict_file(tmp_path / "both", tmp_path / "new.smi", tmp_path / "p.csv")
    rows = read_predictions(tmp_path / "p.csv")
    assert rows[0]["logp"] and not rows[0]["reason"]
    assert bool(rows[1]["logp"]) != bool(rows[1]["reason"])
    assert not rows[1]["logp"] or "not seen by the model" in capsys.readouterr().err


def test_shards_have_names_and_the_ids_of_embeddings(folder, tmp_path):
    convert([folder / "t.csv"], tmp_path / "d", options=Options(conformers=0))
    predict_file(folder / "tuned", tmp_path / "d", tmp_path / "p.csv")
    rows = read_predictions(tmp_path / "p.csv")
    assert len(rows) == 50 and len(rows[0]["uid"]) == 16
    assert [row["name"] for row in rows] == [f"m{n}" for n in range(50)]
    embed_file(folder / "checkpoint", tmp_path / "d", tmp_path / "h.npz", view="2d")
    assert np.load(tmp_path / "h.npz")["uid"].tolist() == [row["uid"] for row in rows]


def test_what_is_no_fine_tuned_model_is_said(folder, tmp_path):
    with pytest.raises(MsdeError, match="holds no fine-tuned model of this release.*pretrained"):
        predict_file(folder / "checkpoint", folder / "t.csv", tmp_path / "p.csv")
    with pytest.raises(MsdeError, match="launch/finetune.py makes one"):
        predict_file(tmp_path, folder / "t.csv", tmp_path / "p.csv")
    with pytest.raises(MsdeError, match="should end in .csv"):
        predict_file(folder / "tuned", folder / "t.csv", tmp_path / "p.npz")


def test_damaged_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder / "tuned/seed-0/model", tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match="is damaged"):
        predict_file(tmp_path / "model", folder / "t.csv", tmp_path / "p.csv")
