"""launch/finetune.py and launch/predict.py as users start them, and the manual's truth."""

import dataclasses
import inspect
import os
import re
import signal
import subprocess
import sys
import time
import typing

import pytest

from fixtures.downstream import read_predictions, read_results, save_checkpoint, write_table
from fixtures.launching import BINARIES, ENVIRONMENT, free_port
from fixtures.paths import LAUNCH, ROOT
from msde.config.document import code, explanations
from msde.downstream import settings
from msde.downstream.tasks import TASKS
from msde.files import markdown_table

MANUAL = (ROOT / "docs/downstream.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """A folder in which the manual's commands can be run."""
    (tmp_path / "launch").symlink_to(LAUNCH)
    save_checkpoint(tmp_path / "demo/run/best")
    path = write_table(tmp_path / "demo/activities.csv", 60)
    path.write_text(path.read_text().replace("logp", "activity"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.launcher
def test_the_commands_of_the_manual_do_what_it_says(folder):
    block = re.search(r"```sh\n(deepspeed .*?)```", MANUAL, re.DOTALL)[1]
    script = block.replace("deepspeed ", f"deepspeed --master_port {free_port()} ", 1)
    path = f"{BINARIES}:{ENVIRONMENT['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=400,
        env=ENVIRONMENT | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(read_results(folder / "tuned")["test"]["rmse"]) == 2
    rows = read_predictions(folder / "predicted.csv")
    assert [row["name"] for row in rows] == ["ethanol", "benzene", "nonsense"]
    assert rows[0].keys() == {"name", "line", "activity", "activity_std", "reason"}
    assert rows[0]["activity"] and not rows[0]["reason"]
    assert not rows[2]["activity"] and rows[2]["reason"]


def start(folder, output, *overrides):
    arguments = ["--task=custom", "--targets=activity", "--data=demo/activities.csv"]
    arguments += ["--checkpoint=demo/run/best", f"--output={output}", "epochs=6", "save_seconds=0"]
    return subprocess.Popen(
        [sys.executable, LAUNCH / "finetune.py", *arguments, *overrides], cwd=folder,
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_results(folder):
    process = start(folder, "whole")
    assert process.wait(300) == 0, process.stdout.read()
    process = start(folder, "killed")
    state, deadline = folder / "killed/seed-0/state.pt", time.monotonic() + 300
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "killed/results.json").exists()
    process = start(folder, "killed")
    assert process.wait(300) == 0, process.stdout.read()
    whole, killed = read_results(folder / "whole"), read_results(folder / "killed")
    assert whole["test"] == killed["test"] and whole["split"] == killed["split"]
    one, other = (folder / n / "seed-0/predictions.csv" for n in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_the_manual_lists_every_task():
    named = set(re.findall(r"`([\w-]+)`", MANUAL))
    for task in TASKS:
        family, _, rest = task.partition("-")
        assert task in named or (rest and f"-{rest}" in named), task


def settings_table():
    """The table of settings, made of the comments in the source."""
    text = explanations(inspect.getsource(settings))["Settings"]
    kinds = typing.get_type_hints(settings.Settings)
    rows = []
    for field in dataclasses.fields(settings.Settings):
        options = typing.get_args(kinds[field.name])
        chosen = ", ".join(map(code, options)) if type(None) not in options else ""
        rows.append((code(field.name), chosen, code(field.default), text[field.name]))
    return markdown_table(("key", "values", "default", "meaning"), rows)


def test_the_manual_has_the_table_of_all_settings():
    found = re.search(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", MANUAL, re.DOTALL)[1]
    assert found == settings_table()
