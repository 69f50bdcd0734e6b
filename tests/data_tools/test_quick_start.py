"""Help and wrong paths do not wait for the libraries that work on molecules."""

import subprocess
import sys

import pytest

from fixtures.paths import LAUNCH

SLOW = ("torch", "rdkit", "numpy", "fsspec", "lmdb")
SCRIPT = """
import runpy, sys
def tell(event, found):
    if event == "import" and found[0] in {slow!r}:
        print("imported:", found[0])
sys.addaudithook(tell)
sys.argv = {argv!r}
if {module!r}:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
TOOLS = {
    "convert": ["nowhere.sdf", "--output", "out"],
    "describe": ["nowhere"],
    "export": ["nowhere", "--output", "out.sdf"],
    "merge": ["nowhere", "--output", "out"],
    "reshard": ["nowhere", "--output", "out"],
    "split": ["nowhere", "--output", "out"],
    "verify": ["nowhere"],
}
SCRIPTS = {
    "embed": ["--checkpoint", ".", "--input", "nowhere.smi", "--output", "out.npz"],
    "finetune": ["--task=esol", "--data=nowhere.csv", "--checkpoint=none", "--output=out"],
    "predict": ["--model", ".", "--input", "nowhere.smi", "--output", "out.csv"],
    "suite": ["--plan", "nowhere.json", "--data", ".", "--checkpoint", ".", "--output", "out"],
    "pretrain": ["--data", "nowhere", "--output", "out"],
    "convert_checkpoint": ["--from-published", "nowhere.pth", "--output", "out"],
}


@pytest.mark.parametrize("name", [*TOOLS, *SCRIPTS])
@pytest.mark.parametrize("is_help", [True, False], ids=["help", "wrong path"])
def test_nothing_slow_is_imported(name, is_help, tmp_path):
    module = f"msde.data_tools.{name}" if name in TOOLS else ""
    arguments = ["--help"] if is_help else {**TOOLS, **SCRIPTS}[name]
    argv = [str(LAUNCH / f"{name}.py"), *arguments]
    script = SCRIPT.format(slow=SLOW, argv=argv, module=module)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == (0 if is_help else 2), done.stderr
    assert "imported:" not in done.stdout
    assert done.stderr.count("\n") == (0 if is_help else 1)
    assert is_help or "nowhere" in done.stderr


@pytest.mark.parametrize("name", ["convert", "describe", "export", "merge", "reshard", "verify"])
def test_commands_offer_their_functions_to_programs(name):
    script = f"from msde.data_tools.{name} import {name}; print({name}.__module__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("msde.data_tools."), done.stderr
