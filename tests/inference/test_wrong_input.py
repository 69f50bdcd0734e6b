"""What is not a list of molecules, or no weights, is an error of one line that says what to do."""

import json

import numpy as np
import pandas
import pytest
from rdkit import Chem
from sklearn.compose import make_column_transformer

import msde
from fixtures.downstream import finetune, save_checkpoint, write_table
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained
from msde.sklearn import MoleculeEmbedding

WATER = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return msde.load(folder)


def refused(call, *parts):
    """Check that a call is refused in one line that holds these parts."""
    with pytest.raises(MsdeError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [Pretrained.conformers, Pretrained.log_likelihood])
@pytest.mark.parametrize("single", ["CCO", Chem.MolFromSmiles("CCO")])
def test_a_single_molecule_is_not_taken_apart(model, method, single):
    refused(lambda: method(model, single), "several molecules as a list, also if it is only one")


def test_a_single_mol_is_not_embedded(model):
    single = Chem.MolFromSmiles("CCO")
    refused(lambda: model.embed(single), "of type Mol", "as a list, also if it is only one")


@pytest.mark.parametrize(
    "make", [lambda s: pandas.DataFrame({"Structure": s}), lambda s: np.array(s)[:, None]]
)
def test_a_column_of_a_table_is_a_list(model, folder, make):
    smiles = ["CCO", "CC(C)O", "c1ccccc1"]
    expected = model.embed(smiles)
    assert np.array_equal(model.embed(make(smiles)), expected)
    found = list(model.conformers(make(["CC", "C"]), num=1))
    assert [one.mol.GetNumAtoms() for one in found] == [8, 5]
    step = MoleculeEmbedding(folder, readout="pretrained")
    assert np.array_equal(step.fit_transform(make(smiles)), expected)


def test_a_column_transformer_gives_the_column(model, folder):
    table = pandas.DataFrame({"Structure": ["CCO", "CC(C)O"], "y": [1, 2]})
    step = MoleculeEmbedding(folder, readout="pretrained")
    columns = make_column_transformer((step, ["Structure"]), ("passthrough", ["y"]))
    found = columns.fit_transform(table)
    assert np.allclose(found[:, :-1], model.embed(table["Structure"])) and found.shape[0] == 2


def test_several_columns_are_refused(folder):
    table = pandas.DataFrame({"Structure": ["CCO", "CC(C)O"], "y": [1, 2]})
    step = MoleculeEmbedding(folder)
    refused(lambda: step.fit_transform(table), "2 columns", "expected the one of molecules")


def test_a_thing_that_is_no_molecule_has_its_number(model):
    with pytest.raises(TypeError, match="^molecule 2: .* of type int, expected a SMILES string"):
        model.embed(["CCO", None, 5])
    with pytest.raises(TypeError, match="^molecule 1: .* of type int"):
        model.conformers(["CCO", 5], num=1)


def test_a_missing_molecule_has_no_conformers(model):
    found = list(model.conformers([None, "CC", float("nan")], num=1))
    assert [one.reason for one in found] == ["no SMILES", "", "no SMILES"]


def test_likelihoods_are_of_conformers(model):
    for given in ("CCO", None):
        with pytest.raises(TypeError, match="^molecule 0: .* expected an RDKit Mol with a conf"):
            model.log_likelihood([given])
    with pytest.raises(MoleculeError, match="^molecule 0: no conformer"):
        model.log_likelihood([Chem.MolFromSmiles("CCO")])


@pytest.mark.parametrize("z", [["O", "H", "H"], ["oxygen"], [None], 8, [[8, 1], [1]]])
def test_atoms_are_given_by_their_numbers(model, z):
    refused(lambda: model.bonds(z, WATER), "z is", "expected atomic numbers such as [8, 1, 1]")


@pytest.mark.parametrize("pos", [[[0, 0, 0], [0, 0]], ["a", "b", "c"], None])
def test_positions_are_numbers(model, pos):
    refused(lambda: model.bonds([8, 1, 1], pos), "pos is", "expected three numbers an atom")


def test_a_fine_tuned_model_is_named(folder, tmp_path):
    tuned = tmp_path / "tuned"
    finetune(write_table(tmp_path / "t.csv", 30), folder, tuned, "epochs=1")
    for path in (tuned, tuned / "seed-0/model"):
        told = (
            f"{path} holds a fine-tuned model",
            f"launch/predict.py --model {path}",
            "FineTuned",
        )
        refused(lambda path=path: msde.load(path), *told)
    assert json.loads((tuned / "config.json").read_text())["task"] == "custom"


def test_a_folder_of_shards_is_named(shard_dir):
    told = (f"{shard_dir} is a folder of shards, expected weights", "--data")
    refused(lambda: msde.load(shard_dir), *told)


def test_a_name_in_place_of_a_folder_is_told_where_its_weights_are():
    refused(lambda: msde.load("run/best"), "run/best cannot be read: it does not exist")
    refused(lambda: msde.load("bonds"), "it does not exist; msde.shipped_checkpoint('bonds')")


@pytest.mark.parametrize(
    "z, charge, message",
    [
        ([6.7, 8], 0, "z is [6.7, 8], expected atomic numbers"),
        ([10**30], 0, "expected atomic numbers"),
        ([6, 8], 0.5, "charge is 0.5, expected a whole number, nine an atom at most"),
        ([6, 8], 10**30, "expected a whole number, nine an atom at most"),
    ],
)
def test_atoms_and_charges_of_bonds_are_whole_numbers(folder, z, charge, message):
    refused(lambda: msde.load(folder).bonds(z, [[0, 0, 0], [1.1, 0, 0]], charge), message)
