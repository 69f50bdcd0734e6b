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


def test_every_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path):
    pytest.importorskip("triton")
    script = ROOT / "benchmarks/compile_kernels.py"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, script, "--capability=90"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)["kernels"]
    launched = {
        name
        for path in Path(ops.__file__).parent.glob("triton/*.py")
        if path.name != "device.py"
        for name in re.findall(r"^@triton\.jit.*\ndef ([a-z]\w+)\(", path.read_text(), re.M)
    }
    assert {kernel["kernel"] for kernel in compiled} == launched
    assert max(kernel["shared_bytes"] for kernel in compiled) < 99 * 1024  # that of small GPUs
