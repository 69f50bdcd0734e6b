"""Ranks that hang."""

import time

import pytest

from fixtures.jobs import (
    Job,
    has_rows,
    wait_for,
)

pytestmark = [pytest.mark.launcher, pytest.mark.dist]


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_hanging_rank_is_detected_and_named(common, tmp_path, hung):
    harm = {"what": "hang", "rank": hung, "step": 4}
    job = Job(tmp_path, *common, "run.steps=100", "run.comm_timeout=10", harm=harm)
    try:
        wait_for(has_rows(tmp_path / "run", 3))
        since = time.monotonic()
        code = job.processes[1 - hung].wait(60)
        took = time.monotonic() - since
    finally:
        job.kill()
    printed = job.log(1 - hung)
    assert code == 4 and took < 15, (code, took, printed[-2000:])
    assert f"silent: rank {hung}" in printed, printed[-2000:]
    assert "all 2 ranks" in printed or "no progress" in printed, printed[-2000:]
