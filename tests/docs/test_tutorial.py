"""The commands of the tutorial, copied in order into an empty folder."""

import csv
import json
import shlex
import subprocess
import time
import urllib.request

import pytest

from fixtures.commands import run_here
from fixtures.launching import BINARIES, ENVIRONMENT, free_port
from fixtures.pages import blocks, form, run_page
from fixtures.paths import ROOT

PAGE = ROOT / "docs/tutorial.md"


def scalars_of(folder):
    """The curves that TensorBoard's page offers."""
    port = free_port()
    server = subprocess.Popen(
        [BINARIES / "tensorboard", "--logdir", "run/tensorboard", "--port", port],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://localhost:{port}/data/plugin/scalars/tags"
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    if runs := json.load(answer):
                        return set().union(*runs.values())
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError("TensorBoard shows no curves")
    finally:
        server.kill()
        server.wait()


def test_the_tutorial_begins_with_the_machine_and_the_size_of_a_run():
    doctor, plan, printed = blocks(PAGE)[1:4]
    text = PAGE.read_text()
    assert doctor.text == "msde doctor\n" and text.index(plan.text) < text.index("## A table")
    found = run_here("msde.__main__", *shlex.split(plan.text)[1:])
    lines = {form(line) for line in found.stdout.splitlines()} | {"..."}
    assert found.returncode == 0 and {form(line) for line in printed.text.splitlines()} <= lines


@pytest.mark.slow
def test_the_tutorial_leads_from_a_table_to_predictions(tmp_path):
    run_page(PAGE, tmp_path)
    assert {"loss/total", "loss/validation/total"} <= scalars_of(tmp_path)
    assert json.loads((tmp_path / "tuned/results.json").read_text())["test"]["rmse"][0] < 0.9
    with open(tmp_path / "predicted.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["activity"]) for row in rows] == [True, False, True]
