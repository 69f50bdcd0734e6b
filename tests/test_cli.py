"""How a command ends."""

import subprocess
import sys

import pytest

from fixtures.commands import run_here
from fixtures.paths import ROOT
from msde.__main__ import COMMANDS


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
