"""Checkpoints of a run, for the tests of this folder."""

import pytest

from fixtures.jobs import TINY, finish
from fixtures.launching import ds_config


@pytest.fixture(scope="session")
def checkpoints(shard_dir, tmp_path_factory):
    """A run of one rank with three checkpoints, of as many files as there can be."""
    folder = tmp_path_factory.mktemp("checkpoints")
    path = ds_config(folder, 2, slots=1)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "run.ema_decay=0.9"]
    output = folder / "run"
    finish(folder, *arguments, "--output", output, "run.steps=3", "run.save_every=1", ranks=1)
    return arguments, output
