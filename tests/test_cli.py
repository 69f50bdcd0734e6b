"""How a command ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.commands import run_here
from fixtures.paths import ROOT
from msde.__main__ import COMMANDS
from msde.cli import named_folder
from msde.errors import MsdeError


@pytest.mark.parametrize("failing", [False, True])
def test_a_rank_exits_with_its_code_while_threads_still_run(failing):
    """Threads of collectives that are late hold a process up, or abort it while Python ends."""
    script = """
import os, sys, threading, time
from msde.cli import report_errors
from msde.errors import NoCheckpoint

def main():
    os.environ["RANK"] = "0"
    threading.Thread(target=time.sleep, args=[100]).start()
    print("was here", end="")
    if sys.argv[1] == "True":
        raise NoCheckpoint("there is none")

report_errors(main)
"""
    command = [sys.executable, "-c", script, str(failing)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == (3 if failing else 0) and done.stdout == "was here"
    assert done.stderr == ("error: there is none\n" if failing else "")


def test_a_full_disk_is_one_line_wherever_it_is_noticed():
    script = (
        "from pathlib import Path; from msde.cli import report_errors;"
        "report_errors(lambda: Path('/dev/full').write_text('x'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: disk full; free some space and run the same command")


def test_one_command_lists_and_runs_all_others():
    found = run_here("msde.__main__", "--help")
    for folder in ("data_tools", "launch"):
        for path in (ROOT / folder).glob("*.py"):
            if "def main()" in path.read_text():
                assert path.stem in COMMANDS and f"  {path.stem} " in found.stdout
    assert "--level" in run_here("msde.__main__", "embed", "--help").stdout
    unknown = run_here("msde.__main__", "embd")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: unknown command 'embd'")
    missing = run_here("msde.__main__", "verify", "nowhere")
    assert missing.returncode == 2 and "nowhere" in missing.stderr


def test_a_folder_may_hold_an_equals_sign_or_have_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=1e-3/best", "best"):
        (tmp_path / folder).mkdir(parents=True)
    assert named_folder("lr=1e-3/best", "pretrained") == ("pretrained", Path("lr=1e-3/best"))
    assert named_folder("mine=best", "pretrained") == ("mine", Path("best"))
    assert named_folder("mine=lr=1e-3/best", "pretrained") == ("mine", Path("lr=1e-3/best"))
    assert named_folder("best", "pretrained") == ("pretrained", Path("best"))
    message = "neither lr=1e-4/best exists nor, if 'lr' is its name as in NAME=DIR, 1e-4/best"
    with pytest.raises(MsdeError, match=message):
        named_folder("lr=1e-4/best", "pretrained")
    with pytest.raises(MsdeError, match="lost cannot be read: it does not exist"):
        named_folder("lost", "pretrained")
