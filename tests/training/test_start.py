"""The first seconds of a run: something is said before anything that takes long is imported."""

import subprocess
import sys

from fixtures.launching import ENVIRONMENT

# Prints which of the slow packages are there when the first line is logged.
SCRIPT = """
import logging, sys
from msde.launch.pretrain import main
said = []

class Handler(logging.Handler):
    def emit(self, record):
        said.append((record.getMessage(), [m for m in ("torch", "deepspeed") if m in sys.modules]))

logging.getLogger("msde").addHandler(Handler())
sys.argv = ["pretrain", *sys.argv[1:]]
main()
print(said[0])
"""


def python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_a_run_says_what_it_does_before_it_loads_torch(shard_dir, tmp_path):
    done = python(SCRIPT, "--data", shard_dir, "--output", tmp_path / "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[-1]
    assert "loading torch" in first and first.endswith("[])"), first
    assert done.stderr.startswith("[rank 0] checking options and data")


def test_scipy_is_not_loaded_before_it_is_used():
    loaded = (
        "import sys, msde.training.loop, msde.inference.pretrained; print('scipy' in sys.modules)"
    )
    done = python(loaded)
    assert done.stdout.strip().endswith("False"), done.stderr
