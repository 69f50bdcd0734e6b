"""Splits by scaffold: nothing is lost, no scaffold is on both sides, more data move nothing."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rdkit import Chem

from msde.chem.rebuild import mol_from_record, plain_mol
from msde.chem.record import record_from
from msde.chem.scaffold import scaffold_of
from msde.data.shards import ShardDataset, write_manifest
from msde.data_tools import split as command
from msde.data_tools.convert import convert
from msde.data_tools.pipeline import packing
from msde.data_tools.sets import splitting
from msde.data_tools.split import split
from msde.data_tools.verify import verify
from msde.errors import DiskFull, MsdeError

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


def test_an_interrupted_split_goes_on_after_its_finished_part(data, tmp_path, monkeypatch):
    roots, out = [data / "a", data / "b"], tmp_path / "s"
    whole = split(roots, tmp_path / "whole", 0.4)

    def stop(root, shards, facts):
        if root.name == "test":
            raise KeyboardInterrupt
        write_manifest(root, shards, facts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "write_manifest", stop)
        split(roots, out, 0.4)
    written = (out / "train/manifest.json").stat().st_ino
    for others, fraction, seed in ((roots, 0.4, 1), (roots, 0.5, 0), (roots[::-1], 0.4, 0)):
        with pytest.raises(MsdeError, match="train holds a data set already"):
            split(others, out, fraction, seed)
    for _ in range(2):  # a split that is complete already is one that was stopped at its end
        assert split(roots, out, 0.4) == whole
        assert (out / "train/manifest.json").stat().st_ino == written
        for part in splitting.PARTS:
            there, expected = ShardDataset(out / part), ShardDataset(tmp_path / "whole" / part)
            assert there.manifest == expected.manifest
            assert list(verify(out / part)) == []


def test_outputs_are_checked_before_the_first_part_is_written(data, tmp_path):
    (tmp_path / "s/test").mkdir(parents=True)
    (tmp_path / "s/test/cat.png").write_bytes(b"")
    with pytest.raises(MsdeError, match=r"test is not empty \(cat\.png is there\)"):
        split([data / "a"], tmp_path / "s", 0.4)
    assert not (tmp_path / "s/train").exists()


def size(*roots):
    return sum(path.stat().st_size for root in roots for path in root.rglob("shard-*"))


def test_room_for_the_inputs_is_enough_for_both_parts(data, tmp_path, monkeypatch):
    roots, out = [data / "a", data / "b"], tmp_path / "s"
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: SimpleNamespace(free=disk - size(tmp_path))
    )
    disk = size(*roots)
    split(roots, out, 0.4)
    shutil.rmtree(out / "test")
    split(roots, out, 0.4)  # with room for the part that is missing, no more
    shutil.rmtree(out)
    disk -= 1
    with pytest.raises(DiskFull, match=f"take {disk + 1:,} bytes, {disk:,} are free; "):
        split(roots, out, 0.4)
    assert not size(out)


def test_the_command_prints_both_counts(data, tmp_path, monkeypatch, capsys):
    arguments = ["split", str(data / "a"), "--output", str(tmp_path / "s"), "--fraction", "0.4"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert "molecules in train" in capsys.readouterr().out


@pytest.mark.parametrize("smiles", ["CC=C1CCCC1", "CC=C1SC(=O)NC1=O", "CC(C)=C1CCCC1"])
def test_scaffolds_of_records_are_those_of_their_smiles(smiles):
    mol = plain_mol(record_from(smiles, topology_only=True))
    assert scaffold_of(mol) == scaffold_of(Chem.MolFromSmiles(smiles))
