"""Commands with a model refuse arguments that cannot work before torch, which takes seconds."""

import subprocess
import sys

import pytest

from fixtures.downstream import write_table

TUNE = ["finetune", "--task", "custom", "--targets", "logp", "--data", "t.csv", "--output", "out"]
FILES = ["--input", "t.csv", "--output"]
# The exit status tells whether torch was imported.
SCRIPT = """
import sys
from importlib import import_module
try:
    import_module(f"msde.launch.{sys.argv.pop(1)}").main()
except Exception as error:
    print(error)
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["embed", *FILES, "e.parquet"], "--output e.parquet should end in .npz or .csv"),
        (["embed", *FILES, "e.csv", "--level", "node"], "which only an --output .npz can hold"),
        (["embed", *FILES, "e.npz", "--level", "node", "--projector", "p"], "--projector shows"),
        (["predict", "--model", ".", *FILES, "p.npz"], "--output p.npz should end in .csv"),
        (["predict", "--model", ".", *FILES, "no/p.csv"], "its folder does not exist"),
        (["sample", "bonds", *FILES, "m.xyz"], "--output m.xyz should end in .sdf or .sdf.gz"),
        ([*TUNE, "epoch=2"], "unknown key 'epoch'; did you mean 'epochs'"),
        ([*TUNE, "lr=fast"], "lr is 'fast', expected"),
        ([*TUNE, "--task", "esol"], "--targets and --metric are for --task custom"),
    ],
)
def test_they_are_refused_at_once(command, message, tmp_path):
    write_table(tmp_path / "t.csv", 5)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command],
        capture_output=True, text=True, cwd=tmp_path, timeout=100,
    )  # fmt: skip
    assert message in done.stdout and done.returncode == 0
    assert not (tmp_path / "out").exists()
