"""How a command ends."""

import subprocess
import sys

import pytest


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
