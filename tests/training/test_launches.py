"""How many kernels a step launches on a GPU, which does not have to be there."""

import json
import subprocess
import sys

import pytest

from fixtures.paths import ROOT

MOST = 700  # of a compiled step, optimizer included


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "base"])
def test_compiled_steps_launch_few_kernels(preset):
    pytest.importorskip("triton")
    script = ROOT / "benchmarks/launches.py"
    command = [sys.executable, script, "--preset", preset, "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["a compiled step, ZeRO 1"] <= MOST
    assert counts["a compiled step, ZeRO 1"] < counts["a step, ZeRO 1"] / 2
