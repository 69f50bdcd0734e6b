import pickle

import numpy as np
import pytest
from rdkit import Chem

from fixtures.pickled import unimol
from fixtures.readers import (
    SMILES,
    TRUST,
    convert,
    embedded,
    positions,
    recognised,
    smiles_of,
    write_lmdb,
)
from msde.chem.vocabulary import MoleculeError
from msde.data_tools.readers import Label, Options, get_reader


def test_conformers_of_the_smiles(tmp_path):
    path = unimol(tmp_path)
    assert recognised(path) == "unimol"
    facts, parsed, rejected = convert(path, TRUST)
    assert [label.name for label in facts.labels] == ["target_0", "target_1"]
    assert rejected == {"its SMILES has other atoms than its geometry": 1}
    assert list(parsed) == [1, 2, 4, 5]
    for line, one in parsed.items():
        assert one.mol.GetNumConformers() == 2 and one.y == (line - 0.5, 1)
        assert smiles_of(one) == Chem.CanonSmiles(SMILES[line - 1])
    full = convert(path, Options(trust_pickle=True, keep_hydrogens=True))[1][1]
    assert np.allclose(positions(full.mol), positions(embedded("CCO", 2)), atol=1e-5)


MISSING = object()


def records(path, targets, **changes):
    mol = embedded("CCO")
    entry = {
        "atoms": [atom.GetSymbol() for atom in mol.GetAtoms()],
        "coordinates": [positions(mol)[0]],
        "smi": "CCO",
        **changes,
    }
    entry = {key: value for key, value in entry.items() if value is not MISSING}
    with_target = ({**entry, **({} if t is MISSING else {"target": t})} for t in targets)
    write_lmdb(path, {n: pickle.dumps(one) for n, one in enumerate(with_target)})
    return path


def test_missing_targets_of_any_dress_are_nan_the_first_too(tmp_path):
    targets = [None, 1.5, MISSING, float("nan"), "", "NA", np.array([2.5]), [np.nan], "3.5"]
    facts, parsed, _ = convert(records(tmp_path / "a.lmdb", targets), TRUST)
    expected = [np.nan, 1.5, *[np.nan] * 4, 2.5, np.nan, 3.5]
    assert facts.labels == (Label("target"),)
    assert np.array_equal([one.y[0] for one in parsed.values()], expected, equal_nan=True)
    facts, parsed, _ = convert(records(tmp_path / "b.lmdb", [None, [1.0, None], MISSING]), TRUST)
    assert [label.name for label in facts.labels] == ["target_0", "target_1"]
    assert np.isnan(parsed[1].y).all() and parsed[2].y[0] == 1 and np.isnan(parsed[2].y[1])


def test_a_target_everywhere_missing_is_left_out(tmp_path):
    facts, parsed, _ = convert(records(tmp_path / "a.lmdb", [None, ""]), TRUST)
    assert facts.labels == () and dict(facts.left_out)["target"].startswith("missing")


@pytest.mark.parametrize(
    ("changes", "targets", "reason"),
    [
        ({"smi": MISSING}, [1.0], r"the record has no 'smi' \(SMILES\)"),
        ({"smi": None}, [1.0], r"the record has no 'smi' \(SMILES\)"),
        ({"smi": float("nan")}, [1.0], r"'smi' \(SMILES\) is nan, expected text"),
        ({"atoms": MISSING}, [1.0], r"the record has no 'atoms' \(symbols of the atoms\)"),
        ({"coordinates": MISSING}, [1.0], r"the record has no 'coordinates'"),
        ({}, [[1.0, 2.0], 1.0], "number of labels differs: 1, expected 2"),
        ({}, [1.0, "abc"], "label target is not a number: 'abc'"),
    ],
)
def test_what_is_missing_is_named_in_words(tmp_path, changes, targets, reason):
    reader = get_reader("unimol", TRUST)
    last = list(reader.read(records(tmp_path / "a.lmdb", targets, **changes)))[-1]
    with pytest.raises(MoleculeError, match=reason):
        reader.parse(last)


def test_deuterium_of_the_smiles_stands_where_rdkit_puts_it(tmp_path):
    mol = Chem.AddHs(Chem.MolFromSmiles("[2H]OC"))
    atoms = [atom.GetSymbol() for atom in mol.GetAtoms()]
    places = [np.random.default_rng(1).normal(size=(len(atoms), 3))]
    path = records(tmp_path / "a.lmdb", [1.0], smi="[2H]OC", atoms=atoms, coordinates=places)
    _, parsed, _ = convert(path, TRUST)
    assert smiles_of(parsed[1]) == "CO"
    assert parsed[1].notes == ("hydrogen isotopes are removed like hydrogens: 1 D",)
