"""Traces of steps."""

import gzip
import json

import pytest

from fixtures.jobs import finish


@pytest.mark.dist
@pytest.mark.slow
def test_a_profile_is_a_trace_of_every_rank(shard_dir, tmp_path):

    arguments = ["--data", shard_dir, "--output", tmp_path / "run", "--preset=paper"]
    arguments += ["model.hidden_dim=16", "data.validation_fraction=0", "run.steps=5"]
    printed = finish(tmp_path, *arguments, "data.molecules_per_step=24", "--profile", 2)
    assert "trace of 2 steps" in printed
    for rank in (0, 1):
        with gzip.open(tmp_path / f"run/profile/rank-{rank}.json.gz") as file:
            names = [event.get("name") for event in json.load(file)["traceEvents"]]
        assert sum(str(name).startswith("ProfilerStep") for name in names) >= 2
        assert any("all_reduce" in str(name) or "allreduce" in str(name) for name in names)
