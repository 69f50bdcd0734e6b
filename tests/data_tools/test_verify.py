import dataclasses
import os

import numpy as np
import pytest

from fixtures.blocks import flip
from fixtures.data_sets import run_tool
from msde.data.codec import columns_from_records
from msde.data_tools.verify import molecule_problems, verify


def test_an_intact_data_set_has_no_problems(shard_dir):
    result = run_tool("verify", shard_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("molecules in 1 shards, all as written\n")
    assert run_tool("verify", shard_dir, "--quick").returncode == 0


def test_every_problem_is_named_with_shard_and_block(copied):
    shard, index = copied / "shard-00000.lmdb", copied / "shard-00000.idx"
    starts = _starts(shard)
    flip(shard, starts[2] + 700)
    flip(shard, starts[4] + 1)
    flip(index, 12 * 16 * 3)
    (copied / "shard-00007.lmdb").write_bytes(b"")
    result = run_tool("verify", copied)
    assert result.returncode == 6 and result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{copied / 'shard-00007.lmdb'} is not in the manifest",
        f"{index} is damaged (SHA-256 differs; block 3)",
        f"{shard}, block 2: block is damaged (CRC32 differs)",
        f"{shard}, block 4: not a molecule block (magic bytes missing)",
    ]
    quick = run_tool("verify", copied, "--quick")
    assert quick.returncode == 6 and "block 2:" not in quick.stdout


def _starts(path):
    data, found = path.read_bytes(), []
    at = data.find(b"MSDB")
    while at >= 0:
        found.append(at)
        at = data.find(b"MSDB", at + 4)
    return found


@pytest.mark.parametrize("quick", [False, True])
def test_files_that_are_cut_or_gone_are_named(copied, quick):
    os.truncate(copied / "shard-00000.lmdb", 8192)
    (copied / "shard-00000.idx").unlink()
    problems = list(verify(copied, quick))
    assert any("shard-00000.lmdb has 8192 bytes" in p for p in problems)
    assert any("shard-00000.idx has no file" in p for p in problems)


def test_a_missing_data_set_is_an_error_of_the_user(tmp_path):
    result = run_tool("verify", tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "at", "value", "said"),
    [
        ("x", (0, 3), 12, "atom features"),
        ("cip", 0, 5, "CIP labels"),
        ("bond_attr", (3, 0), 5, "bond features"),
        ("bond_index", (3, 1), 0, "bonds out of order"),
        ("bond_index", (3, 1), 200, "bonds out of order"),
        ("extended_degree", 5, 99, "degrees"),
        ("extended_source", 3, 200, "extended edges out of range"),
        ("extended_source", 3, 0, "extended edges"),
        ("pos", (4, 1), np.nan, "positions"),
        ("pos", (4, 1), 50, "not centred"),
        ("origin", 1, 4, "geometry that contradicts"),
        ("num_conformers", 0, 0, "counts"),
    ],
)
def test_invalid_fields_are_found(records, column, at, value, said):
    columns = columns_from_records(records)
    assert list(molecule_problems(columns)) == []
    changed = getattr(columns, column).copy()
    changed[at] = value
    found = list(molecule_problems(dataclasses.replace(columns, **{column: changed})))
    assert any(said in what for what, _ in found), found
