"""What the tests of whole runs of two ranks share."""

import pytest

from fixtures.jobs import TINY
from fixtures.launching import ds_config


@pytest.fixture
def common(shard_dir, tmp_path):
    path = ds_config(tmp_path, 1, slots=2)
    return ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", tmp_path / "run"]
