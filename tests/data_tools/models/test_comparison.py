"""The comparison of conformers, on references whose answer is known."""

import dataclasses
import json

import numpy as np
import pytest
from rdkit import Chem

from fixtures.conformers import embedded, saved_model
from fixtures.data_sets import write_data_set
from fixtures.molecules import make_record, topology
from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.models import comparison
from msde.data_tools.models.bond_comparison import compare_bonds
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
from msde.sampling.bonds import BondOptions
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
    with pytest.raises(MsdeError, match="4 molecules have no geometry"):
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


QUICK = {"counts": (1,), "starts": ["noise"]}
ONE = ConformerOptions(steps=2, candidates=1)


def test_references_with_hydrogens_have_the_rows_of_those_without(weights, tmp_path):
    tables = []
    for keep in (False, True):
        records = [make_record(smiles, k, keep) for k, smiles in enumerate(SMILES, 1)]
        folder = write_data_set(tmp_path / f"data{keep}", records)
        compare(weights, folder, tmp_path / "r.json", ONE, **QUICK)
        result = json.loads((tmp_path / "r.json").read_text())
        tables.append([row["MAT-R"] for row in result["rows"]])
        assert result["references"]["atoms"] == [3, 4, 4, 13]
    assert tables[1] == pytest.approx(tables[0], abs=2e-3)


def test_molecules_without_geometry_are_left_out_and_counted(weights, tmp_path):
    records = [topology(embedded("CCC")), make_record("CCO", 1), make_record("CCN", 2)]
    records.append(make_record("C[NH3+].CC(=O)[O-]", 3))
    folder = write_data_set(tmp_path / "data", records)
    text = compare(weights, folder, tmp_path / "r.json", ONE, **QUICK)
    result = json.loads((tmp_path / "r.json").read_text())
    facts = result["references"]
    assert (facts["molecules"], facts["without geometry"], facts["not rebuilt"]) == (2, 1, 0)
    assert "1 molecules have no geometry and are left out." in text
    assert "1 molecules are of a kind that no model samples and are left out of all rows." in text
    assert facts["not sampled"] == 1 and facts["atoms"] == [3, 3]
    assert all(len(row["MAT-R of each"]) == 2 for row in result["rows"])
    assert all(method["failed"] == 0 for method in result["methods"].values())


def test_references_that_rdkit_made_are_told(weights, tmp_path):
    records = [make_record("CCO", 1), make_record("CCN", 2)]
    records[0] = dataclasses.replace(records[0], origin=Origin.SOURCE)
    folder = write_data_set(tmp_path / "data", records)
    text = compare(weights, folder, tmp_path / "r.json", ONE, **QUICK)
    said = (
        "1 of 2 references have conformers that RDKit made: its rows are judged by their own kind."
    )
    assert said in text.splitlines()
    assert json.loads((tmp_path / "r.json").read_text())["remarks"] == [said]


def test_conformers_that_etkdg_does_not_find_are_told(weights, tmp_path, monkeypatch):
    def embed(mol, count, seed, embed=comparison.embed):
        return [] if mol.GetNumHeavyAtoms() == 4 else embed(mol, count, seed)

    monkeypatch.setattr(comparison, "embed", embed)
    records = [make_record("CCO", 1), make_record("CC(C)N", 2)]
    text = compare(
        weights, write_data_set(tmp_path / "data", records), tmp_path / "r.json", ONE,
        counts=(3,), starts=["noise"],
    )  # fmt: skip
    lines = text.splitlines()
    assert "ETKDG made 3 of 6 conformers." in lines
    said = "1 of 2 references have no conformers; its MAT-R and labels leave them out."
    assert f"ETKDGv3: {said}" in lines and text.count(said) == 1
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines[:6])
    failed = {row[head.index("method")]: row[head.index("failed")] for row in rows}
    assert list(failed.values()) == ["1", "1", "0", "0"]
    methods = json.loads((tmp_path / "r.json").read_text())["methods"]
    assert methods["ETKDGv3"]["conformers"] == 3 and methods["msde, from noise"]["conformers"] == 6


def test_only_the_chosen_molecules_are_rebuilt(tmp_path, monkeypatch):
    records = [make_record("C" * k, k) for k in range(1, 8)]
    folder = write_data_set(tmp_path / "data", records)
    monkeypatch.setattr(ShardDataset, "records", None)
    mols, counts = references_of(folder, 3)
    assert [mol.GetNumAtoms() for mol in mols] == [1, 4, 7] and counts["conformers made"] == 3


def test_where_no_reference_is_left_the_error_says_why(tmp_path):
    def refuse(mol):
        raise MoleculeError("of two parts")

    folder = write_data_set(
        tmp_path / "data", [make_record("CC.O", 1), topology(Chem.MolFromSmiles("CCO"))]
    )
    said = (
        "data has nothing to compare with. 1 molecules have no geometry and are left out. "
        "1 molecules are of a kind that no model samples and are left out of all rows"
    )
    with pytest.raises(MsdeError, match=f"{said}$"):
        references_of(folder, None, refuse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"limit": -1}, "--limit must be at least 1"),
        ({"counts": (0, 1)}, "--counts must be at least 1"),
        ({"counts": (-2,)}, "--counts must be at least 1"),
        ({"output": "none/r.json"}, "--output .* is not writable"),
        ({"sampling": ConformerOptions(std=0.01)}, "std is 0.01 A, expected more than"),
        ({"posebusters": True}, r"pip install 'msde\[evaluate\]'"),
    ],
)
def test_wrong_choices_are_one_line_before_any_work(
    weights, tmp_path, change, message, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(comparison, "references_of", None)
    given = {"output": "r.json", "sampling": ConformerOptions()} | change
    given["output"] = tmp_path / given["output"]
    with pytest.raises(MsdeError, match=message) as error:
        compare(weights, tmp_path / "data", **given)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"noises": (0.0, float("nan"))}, "--noise must be finite and not negative"),
        ({"noises": (-0.1,)}, "--noise must be finite and not negative"),
        ({"output": "none/r.json"}, "--output .* is not writable"),
    ],
)
def test_wrong_choices_for_bonds_are_one_line_before_any_work(weights, tmp_path, change, message):
    given = {"output": "r.json", "options": BondOptions()} | change
    given["output"] = tmp_path / given["output"]
    with pytest.raises(MsdeError, match=message):
        compare_bonds(weights, tmp_path / "data", **given)
