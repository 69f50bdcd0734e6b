"""Index sets equal the published ones, are kept with a hash, and are refused for other data."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils import shuffle

from fixtures.downstream import smiles, write_table
from fixtures.paths import DATA
from msde.data_tools.convert import convert
from msde.data_tools.options import Options
from msde.downstream import splits
from msde.downstream.labels import read_task_data
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task
from msde.errors import DataDamaged, MsdeError

# Made by the published rules (chao1224/MoleculeSDE, examples/splitters.py; for DeepChem without
# chirality; the permutation of a ragged list as one of an array of objects), from the SMILES as
# they stand in the files. Those scaffolds have E or Z by how a SMILES is written, ours never.
EXPECTED = json.loads(Path(__file__).with_name("scaffold_splits.json").read_text())
# How many molecules of a part are not in that of the index files.
OTHERS = {
    ("bbbp", "scaffold"): {"valid": 1},
    ("bbbp", "random_scaffold"): {"valid": 101, "test": 124},
}

CUSTOM = get_task("custom")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    path = write_table(folder / "t.csv", 50)
    convert([path], folder / "data", options=Options(conformers=0, label_columns=("logp",)))
    return read_task_data(folder / "data", get_task("custom", ["logp"]))


def settings(*overrides):
    return make_settings(get_task("custom"), overrides)


@pytest.mark.parametrize("name", ["nci", "freesolv", pytest.param("bbbp", marks=pytest.mark.data)])
def test_scaffold_splits_are_the_published_index_sets(name, tmp_path):
    if name == "nci":
        source = tmp_path / "nci.csv"
        lines = [f"{text},{n}" for n, text in enumerate(smiles(EXPECTED[name]["molecules"]))]
        source.write_text("\n".join(["smiles,y", *lines]) + "\n")
        task = get_task("custom", ["y"])
    else:
        source, task = DATA / f"moleculenet/{name}.csv", get_task(name)
        if not source.exists():
            pytest.skip(f"{source} is not there")
    convert([source], tmp_path / "d", options=Options(conformers=0, label_columns=task.targets))
    data = read_task_data(tmp_path / "d", task)
    assert len(data) == EXPECTED[name]["molecules"]
    for kind, seed in (("scaffold", 0), ("deepchem", 0), ("random_scaffold", 7)):
        split = splits.make_split(data, settings(f"split={kind}", f"split_seed={seed}"), task)
        for part in ("valid", "test"):
            found = set(split.parts()[part].tolist())
            others = OTHERS.get((name, kind), {}).get(part, 0)
            assert len(found - {*EXPECTED[name][kind][part]}) == others, (kind, part)
            assert len(found) == len(EXPECTED[name][kind][part])


def test_the_random_split_is_that_of_qm9_and_of_md17():
    split = splits.random_split(1000, 100, 50, 42)
    np.random.seed(42)
    expected = np.random.permutation(1000)
    assert split.train.tolist() == expected[:100].tolist()
    assert split.train.tolist() == shuffle(np.arange(1000), random_state=42)[:100].tolist()
    assert split.test.tolist() == expected[150:].tolist()


@pytest.mark.parametrize("kind", ["scaffold", "deepchem", "random_scaffold", "random"])
def test_parts_hold_every_molecule_once(table, kind):
    split = splits.make_split(table, settings(f"split={kind}"), CUSTOM)
    every = np.concatenate(list(split.parts().values()))
    assert sorted(every.tolist()) == list(range(len(table)))
    if kind != "random":
        scaffolds = np.array(splits.scaffolds_of(table, chirality=kind != "deepchem"))
        groups = [set(scaffolds[members]) for members in split.parts().values()]
        assert not groups[0] & groups[2] and not groups[0] & groups[1] and not groups[1] & groups[2]


def test_fewer_labels_are_a_part_of_more_with_the_same_test_part(table):
    few, many = (
        splits.make_split(table, settings(f"labels={n}", "split=random"), CUSTOM) for n in (8, 16)
    )
    assert few.train.tolist() == many.train[:8].tolist() and len(many.train) == 16
    assert few.test.tolist() == many.test.tolist()


def test_words_of_a_column_name_the_parts():
    split = splits.column_split(["train", "Test", "VAL", "0", "2"])
    assert {name: m.tolist() for name, m in split.parts().items()} == {
        "train": [0, 3], "valid": [2], "test": [1, 4]
    }  # fmt: skip
    with pytest.raises(MsdeError, match="holds 'maybe', expected one of train"):
        splits.column_split(["train", "maybe"])


def test_a_split_is_kept_with_its_hash_and_refused_for_other_rules(table, tmp_path):
    path = tmp_path / "split.json"
    first, text = splits.stored_split(path, table, settings(), CUSTOM)
    path.write_text(text)
    again, _ = splits.stored_split(path, table, settings(), CUSTOM)
    assert first.test.tolist() == again.test.tolist() and first.sha256 == again.sha256 != ""
    with pytest.raises(MsdeError, match="of another rule .*'deepchem'.*choose another --output"):
        splits.stored_split(path, table, settings("split=deepchem"), CUSTOM)
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(DataDamaged, match="is damaged"):
        splits.stored_split(path, table, settings(), CUSTOM)


def test_published_numbers_become_shares_where_there_are_fewer_molecules(table, caplog):
    task = get_task("md17-ethanol")
    with caplog.at_level("INFO", "msde"):
        split = splits.make_split(table, make_settings(task, ["split=random"]), task)
    assert len(split.train) == 40 and "not more than 1000 + 1000" in caplog.text


def test_numbers_that_leave_none_to_test_on_are_an_error(table):
    with pytest.raises(MsdeError, match="train=49 and valid=1 leave none of 50 molecules to test"):
        splits.make_split(table, settings("split=random", "train=49", "valid=1"), CUSTOM)


@pytest.mark.parametrize("size", [22, 29, 50, 103])
def test_numbers_of_molecules_are_met_where_scaffolds_allow(size):
    scaffolds = [str(n) for n in range(size)]
    for valid in range(1, size - 6):
        for split in (
            splits.random_scaffold_split(scaffolds, 5, valid, 0),
            splits.scaffold_split(scaffolds, 5, valid),
        ):
            assert [len(part) for part in split.parts().values()] == [5, valid, size - 5 - valid]


def test_an_empty_part_is_an_error(table):
    with pytest.raises(MsdeError, match="the valid part of 50 molecules is empty"):
        splits.make_split(table, settings("split=random", "train=0.9", "valid=0.01"), CUSTOM)
