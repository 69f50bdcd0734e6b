"""The first seconds of a run: something is said before anything that takes long is imported."""

import subprocess
import sys

import pytest

from fixtures.launching import ENVIRONMENT
from msde.config import make_config
from msde.errors import MsdeError
from msde.training.start import check_by_deepspeed

# Ends where one of the slow packages is imported.
SCRIPT = """
import sys
from msde.launch.pretrain import main

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "deepspeed"):
            sys.exit(f"imports {name}")

sys.meta_path.insert(0, Slow())
sys.argv = ["pretrain", *sys.argv[1:]]
main()
"""


def python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_a_run_says_what_it_does_before_it_loads_torch(shard_dir, tmp_path):
    done = python(SCRIPT, "--data", shard_dir, "--output", tmp_path / "run", "--dry-run")
    said, *others = done.stderr.splitlines()
    assert said.startswith("[rank 0] checking options and data; loading torch"), done.stderr
    assert others == ["imports torch"]


def test_scipy_is_not_loaded_before_it_is_used():
    loaded = (
        "import sys, msde.training.loop, msde.inference.pretrained; print('scipy' in sys.modules)"
    )
    done = python(loaded)
    assert done.stdout.strip().endswith("False"), done.stderr


def test_what_deepspeed_refuses_is_one_line():
    check_by_deepspeed(make_config(), {"zero_optimization": {"stage": 3}})
    with pytest.raises(MsdeError, match="DeepSpeed refuses zero_optimization: .*stage") as caught:
        check_by_deepspeed(make_config(), {"zero_optimization": {"stage": "three"}})
    assert "\n" not in str(caught.value)
