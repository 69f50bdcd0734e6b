"""The comparison of conformers, on references whose answer is known."""

import dataclasses
import json

import numpy as np
import pytest

from fixtures.conformers import embedded, saved_model
from msde.data_tools.convert import convert
from msde.data_tools.models.comparison import (
    BASELINE,
    CLUSTERED,
    compare,
    references_of,
)
from msde.data_tools.models.pictures import denoising_errors
from msde.data_tools.options import Options
from msde.errors import MsdeError
from msde.evaluation.conformers import coverage, rmsd_matrix
from msde.inference.pretrained import load
from msde.sampling.conformers import ConformerOptions, sample_conformers

SMILES = ["CCO", "C[C@H](F)Cl", "C/C=C\\C", "CC(=O)Oc1ccccc1C(=O)O"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved_model(tmp_path_factory)


def shards(folder, conformers):
    (folder / "m.smi").write_text("\n".join(SMILES) + "\n")
    options = Options(conformers=conformers)
    convert([folder / "m.smi"], folder / "data", "smiles", options=options)
    return folder / "data"


def test_every_method_has_a_row_for_each_count(weights, tmp_path):
    references = shards(tmp_path, 1)
    text = compare(
        weights, references, tmp_path / "r.json", ConformerOptions(steps=3, candidates=2),
        counts=(1, 3), pictures=tmp_path / "pictures",
    )  # fmt: skip
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == ["conformers.png", "errors.png", "film.png"]
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["K"] for row in result["rows"]] == [1] * 12 + [3] * 12
    by_name = {(row["method"], row["K"]): row for row in result["rows"]}
    for method in ("ETKDGv3", BASELINE, "msde, from noise"):
        more, fewer = by_name[method, 3], by_name[method, 1]
        assert 0 < more["MAT-R"] <= fewer["MAT-R"]
        assert np.all(np.diff(more["COV-R"]) >= 0)
    assert by_name[BASELINE, 3]["minus baseline"] == [0, 0, 0]
    # The references are themselves of ETKDG and MMFF, of rigid molecules, most of them.
    assert by_name[BASELINE, 3]["sizes"]["1-8"]["MAT-R"] < 0.05
    assert by_name["msde, from noise", 3]["MAT-R"] > by_name[BASELINE, 3]["MAT-R"]
    methods = result["methods"]
    for start in ("ETKDG", "noise"):
        sampled, relaxed = (f"msde, from {start}{rest}" for rest in ("", ", relaxed"))
        assert by_name[relaxed, 3]["MAT-R"] != by_name[sampled, 3]["MAT-R"]
        for kind in ("error of lengths", "error of angles"):
            assert methods[relaxed][kind] < methods[sampled][kind]
        assert methods[relaxed]["conformers/s"] < methods[sampled]["conformers/s"]
        for name in (sampled, relaxed):
            chosen = by_name[name + CLUSTERED, 3]
            assert chosen["MAT-R"] != by_name[name, 3]["MAT-R"]
            difference = chosen["MAT-R"] - by_name[BASELINE + CLUSTERED, 3]["MAT-R"]
            assert chosen["minus clustered baseline"][0] == pytest.approx(difference)
            assert methods[name + CLUSTERED]["conformers/s"] < methods[name]["conformers/s"]
            assert methods[name + CLUSTERED]["centres"][1] == methods[name]["centres"][1]
    assert methods[BASELINE]["centres"] == [3, 3] and methods[BASELINE]["bonds"] == [3, 3]
    assert methods[BASELINE]["error of lengths"] < 0.01
    assert text.count("\n| 3 |") == 12 and "4 references" in text
    assert "Rows `clustered` have 2 candidates for a conformer, others one." in text


def test_references_without_geometry_are_an_error(weights, tmp_path):
    references = shards(tmp_path, 0)
    with pytest.raises(MsdeError, match="holds no molecules with geometry"):
        compare(weights, references, tmp_path / "r.json", ConformerOptions())
    assert not (tmp_path / "r.json").exists()


def test_noise_is_measured_in_angstrom(weights):
    mols = [embedded(smiles) for smiles in SMILES]
    stds, noised, denoised = denoising_errors(load(weights).model, mols, seed=0)
    centred = 1 - len(mols) / sum(mol.GetNumAtoms() for mol in mols)  # no noise of the centre
    assert np.allclose(noised, stds * np.sqrt(3 * centred), rtol=0.3)
    assert np.all(denoised[-4:] < noised[-4:])  # at large noise any guess of finite size is better


def test_chosen_conformers_are_those_that_sampling_returns(weights, tmp_path):
    options = ConformerOptions(steps=3, candidates=3)
    compare(
        weights, shards(tmp_path, 1), tmp_path / "r.json", options, counts=(1, 2), starts=["etkdg"]
    )
    result = json.loads((tmp_path / "r.json").read_text())
    rows = {(row["method"], row["K"]): row for row in result["rows"]}
    assert len(rows) == 16 and not any("noise" in name for name, _ in rows)
    mols, _ = references_of(tmp_path / "data", None)
    model = load(weights).model
    for is_relaxed, name in ((False, "msde, from ETKDG"), (True, "msde, from ETKDG, relaxed")):
        for num in (1, 2):
            wanted = dataclasses.replace(options, num=num, relax=is_relaxed)
            found = sample_conformers(model, mols, wanted)
            matrices = [rmsd_matrix(f.mol, m) for f, m in zip(found, mols, strict=True)]
            expected = rows[name + CLUSTERED, num]["MAT-R of each"]
            assert np.allclose(coverage(matrices).matching, expected, atol=2e-3)


def test_without_candidates_nothing_is_clustered(weights, tmp_path):
    references, options = shards(tmp_path, 1), ConformerOptions(steps=2, candidates=1)
    text = compare(weights, references, tmp_path / "r.json", options, counts=(1,), starts=["noise"])
    assert text.count("\n| 1 |") == 4 and "clustered" not in text
