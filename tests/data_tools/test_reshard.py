import os

import pytest

from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.pipeline import parts
from msde.data_tools.readers import Options
from msde.data_tools.reshard import reshard
from msde.data_tools.verify import verify
from msde.errors import MsdeError
from msde.files import file_sha256


def test_resharding_keeps_molecules_and_comes_back(shard_dir, tmp_path):
    count = reshard(shard_dir, tmp_path / "small", shard_molecules=37, block_molecules=5)
    dataset = ShardDataset(tmp_path / "small")
    assert [s["molecules"] for s in dataset.manifest["shards"]][:-1] == [37] * ((count - 1) // 37)
    assert list(verify(tmp_path / "small")) == []
    reshard(tmp_path / "small", tmp_path / "back", block_molecules=16)
    for name in os.listdir(shard_dir):
        if not name.startswith("manifest"):
            assert file_sha256(tmp_path / "back" / name) == file_sha256(shard_dir / name), name
    assert ShardDataset(tmp_path / "back").digest == ShardDataset(shard_dir).digest


def test_large_molecules_do_not_change_the_bytes_of_others(tmp_path, monkeypatch):
    """Atoms are numbered in one byte or, where a shard has a molecule of over 256 atoms, in two."""
    monkeypatch.setattr(parts, "SHARD_MOLECULES", 64)
    (tmp_path / "m.smi").write_text("\n".join(["CCO"] * 64 + ["C" * 300] + ["CCO"] * 9) + "\n")
    options = Options(conformers=0, max_atoms=300)
    convert([tmp_path / "m.smi"], tmp_path / "data", options=options)
    first, second = (b.bond_index.itemsize for b in ShardDataset(tmp_path / "data").blocks())
    assert (first, second) == (1, 2)
    reshard(tmp_path / "data", tmp_path / "one", shard_molecules=1000)
    reshard(tmp_path / "one", tmp_path / "back", shard_molecules=64)
    assert ShardDataset(tmp_path / "back").digest == ShardDataset(tmp_path / "data").digest


def test_a_killed_run_starts_over(shard_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-00009.lmdb").write_bytes(b"of a run that did not end")
    (out / ".shard-00001.lmdb.tmp").write_bytes(b"")
    reshard(shard_dir, out, shard_molecules=100)
    assert not (out / "shard-00009.lmdb").exists() and list(verify(out)) == []
    for taken in (out, shard_dir):
        with pytest.raises(MsdeError, match="holds a data set already|is one of the inputs"):
            reshard(shard_dir, taken)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"")
    with pytest.raises(MsdeError, match=r"is not empty \(cat\.png is there\)"):
        reshard(shard_dir, tmp_path / "photos")
