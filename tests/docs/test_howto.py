"""The commands of the how-to pages; worked examples are made in a copy of the project."""

import shutil
import subprocess

import pytest

from fixtures.pages import blocks, run_page
from fixtures.paths import ROOT

HOWTO = ROOT / "docs/howto"
EXAMPLES = ["add-encoder", "add-reader", "add-sde"]
INSIDE = ("data_tools", "launch", "ds_configs")  # these install inside the package


def diffs(name):
    return [block.text for block in blocks(HOWTO / f"{name}.md") if block.language == "diff"]


def git_apply(folder, diff, *options):
    return subprocess.run(
        ["git", "apply", *options, "-"], cwd=folder, input=diff, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of the project that is imported instead of it."""
    for name in ("msde", "tests", "docs", *INSIDE):
        ignored = shutil.ignore_patterns("__pycache__", "_build", *INSIDE)
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in INSIDE:
        (tmp_path / "msde" / name).symlink_to(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_changes_of_a_worked_example_fit_the_source(name):
    assert diffs(name)
    for diff in diffs(name):
        done = git_apply(ROOT, diff, "--check")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example_runs_in_a_copy_of_the_project(name, copy, shard_dir):
    (copy / "data").symlink_to(shard_dir)
    for diff in diffs(name):
        done = git_apply(copy, diff)
        assert done.returncode == 0, done.stderr
    run_page(HOWTO / f"{name}.md", copy, PYTHONPATH=str(copy))
