"""Completion of `msde` in a shell."""

import subprocess
import sys

import pytest

from fixtures.commands import run_here

# Words of a command line, the last one begun, and words that the Tab key has to offer.
TYPED = {
    "a command": ("msde fi", ["finetune"]),
    "an option": ("msde embed --inp", ["--input"]),
    "a sampler": ("msde sample conformers --sampler dpm", ["dpm_solver_2m"]),
    "a classifier": ("msde sample bonds --sampler cl", ["classifier"]),
    "a task": ("msde finetune --task qm9-h", ["qm9-homo", "qm9-h298"]),
    "a metric": ("msde finetune --metric r", ["roc_auc", "rmse"]),
    "a preset": ("msde pretrain --preset b", ["base", "bonds"]),
    "a file": ("msde embed --input mole", ["molecules.csv"]),
    "a folder": ("msde verify sh", ["shards"]),
}


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "molecules.csv").touch()
    (folder / "shards").mkdir()
    done = run_here("msde.__main__", "completion", "bash")
    assert done.returncode == 0, done.stderr
    (folder / "msde.bash").write_text(done.stdout)
    return folder


@pytest.mark.parametrize(("typed", "offered"), TYPED.values(), ids=TYPED)
def test_bash_completes(bash, typed, offered):
    script = f"""
source msde.bash
function=$(complete -p msde | grep -o '[^ ]* msde$' | cut -d' ' -f1)
COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$function msde "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=bash, capture_output=True, text=True)
    assert set(offered) == set(done.stdout.split()), done.stderr


def test_without_shtab_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    done = run_here("msde.__main__", "completion", "bash")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: shtab is missing; pip install 'msde[completion]' installs it\n"
