"""The Triton kernels for a GPU that is not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.paths import ROOT
from msde import ops


@pytest.mark.parametrize(
    ("preset", "capability"),
    [
        ("paper", 90),
        *(
            pytest.param(preset, capability, marks=pytest.mark.slow)
            for preset in ("paper", "base", "large", "xl")
            for capability in (80, 90)
        ),
    ],
)
def test_every_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path, preset, capability):
    pytest.importorskip("triton")
    script = ROOT / "benchmarks/compile_kernels.py"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, script, "--json", f"--preset={preset}", f"--capability={capability}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)["kernels"]
    launched = {
        name
        for path in Path(ops.__file__).parent.glob("triton/*.py")
        if path.name != "device.py"
        for name in re.findall(r"^@triton\.jit.*\ndef ([a-z]\w+)\(", path.read_text(), re.M)
    }
    assert {kernel["name"] for kernel in compiled} == launched
    assert {kernel["capability"] for kernel in compiled} == {capability}
    assert not any(kernel["spilled_bytes"] for kernel in compiled)
    assert max(kernel["shared_bytes"] for kernel in compiled) < 99 * 1024  # that of small GPUs
