import dataclasses

import numpy as np
import pytest

from fixtures.data_sets import run_tool, write_data_set
from fixtures.molecules import make_record
from msde.data_tools.describe import describe
from msde.data_tools.pipeline.summary import statistics


def test_the_description_has_the_statistics_of_the_data(records, tmp_path):
    some = [dataclasses.replace(r, y=np.array([n, np.nan])) for n, r in enumerate(records)]
    data = write_data_set(tmp_path / "data", some, [("gap", "eV"), ("mu", "D")])
    text = "\n".join(describe(statistics(data)))
    atoms = [len(r.z) for r in records]
    assert "10 molecules in 1 shards" in text and "all sampled" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("atoms"))
    assert row[1:] == [f"{np.mean(atoms):g}", "1", f"{np.median(atoms):g}", f"{max(atoms)}"]
    row = next(line.split() for line in text.splitlines() if line.startswith("gap [eV]"))
    assert row[2:5] == ["10", "0", "4.5"]
    row = next(line.split() for line in text.splitlines() if line.startswith("mu [D]"))
    assert row[2:] == ["0", "10", "-", "-", "-", "-"]
    assert "10 conformers made" in text
    stats = statistics(data)
    assert stats.elements["C"] == sum((r.z == 6).sum() for r in records)
    assert 1.3 < stats.bond_lengths["C:C"].mean() < 1.45


def test_charges_that_codes_do_not_tell_are_left_out(tmp_path):
    made = [make_record(s, n) for n, s in enumerate(["[Fe+7]", "[Fe-6]", "CC(=O)[O-]", "C"], 1)]
    text = "\n".join(describe(statistics(write_data_set(tmp_path / "data", made))))
    row = next(line for line in text.splitlines() if line.startswith("charge (not of 2 beyond"))
    assert row.split()[-4:] == ["-0.5", "-1", "-0.5", "0"]


def test_large_data_sets_are_sampled(shard_dir, monkeypatch):
    monkeypatch.setattr("msde.data_tools.pipeline.summary.SAMPLE_BLOCKS", 3)
    stats = statistics(shard_dir)
    assert stats.sampled < stats.manifest["molecules"]
    assert "in evenly spaced blocks, sampled" in describe(stats)[0]


def test_a_picture_is_drawn(shard_dir, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = run_tool("describe", shard_dir, "--output", tmp_path / "picture.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
