"""Splits by scaffold: nothing is lost, no scaffold is on both sides, more data move nothing."""

import numpy as np
import pytest

from msde.chem.rebuild import mol_from_record
from msde.chem.scaffold import scaffold_of
from msde.data.shards import ShardDataset
from msde.data_tools import split as command
from msde.data_tools.convert import convert
from msde.data_tools.split import split
from msde.errors import MsdeError

RINGS = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNC1", "c1ccsc1", "C1CC1", "c1ccoc1", "CCCCC"]
SMILES = [chain + ring for chain in ("C", "CC", "N", "O") for ring in RINGS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    (folder / "a.smi").write_text("\n".join(SMILES[:20]) + "\n")
    (folder / "b.smi").write_text("\n".join(SMILES[20:]) + "\n")
    for name in "ab":
        convert([folder / f"{name}.smi"], folder / name, "smiles")
    return folder


def molecules(root):
    """uid -> scaffold."""
    return {
        int(columns.uid[place]): scaffold_of(mol_from_record(columns.record(place)))
        for columns in ShardDataset(root).blocks()
        for place in range(len(columns))
    }


def test_every_molecule_is_in_one_part_and_every_scaffold_too(data, tmp_path):
    counts, unknown = split([data / "a", data / "b"], tmp_path / "s", 0.4)
    train, test = molecules(tmp_path / "s/train"), molecules(tmp_path / "s/test")
    assert train | test == molecules(data / "a") | molecules(data / "b")
    assert not train.keys() & test.keys() and not set(train.values()) & set(test.values())
    assert counts == {"train": len(train), "test": len(test)} and not unknown
    assert np.all([counts[part] > 0 for part in counts])


def test_more_data_move_no_molecule(data, tmp_path):
    split([data / "a"], tmp_path / "one", 0.4)
    split([data / "a", data / "b"], tmp_path / "both", 0.4)
    one, both = (molecules(tmp_path / name / "test") for name in ("one", "both"))
    assert one.keys() == both.keys() & molecules(data / "a").keys()


def test_the_manifest_says_how_it_was_split_and_the_seed_changes_it(data, tmp_path):
    parts = []
    for seed in range(3):
        split([data / "a", data / "b"], tmp_path / f"{seed}", 0.4, seed)
        manifest = ShardDataset(tmp_path / f"{seed}/test").manifest
        assert manifest["source"]["split"] == {"part": "test", "fraction": 0.4, "seed": seed}
        parts.append(frozenset(molecules(tmp_path / f"{seed}/test")))
    assert len(set(parts)) > 1


def test_a_part_that_would_be_empty_is_an_error(data, tmp_path):
    with pytest.raises(MsdeError, match="0 of 20 molecules would be in the test set"):
        split([data / "a"], tmp_path / "s", 0.0)
    assert not (tmp_path / "s").exists()


def test_the_command_prints_both_counts(data, tmp_path, monkeypatch, capsys):
    arguments = ["split", str(data / "a"), "--output", str(tmp_path / "s"), "--fraction", "0.4"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert "molecules in train" in capsys.readouterr().out
